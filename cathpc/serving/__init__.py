"""Servers of models: started, watched and ended; and the endpoints that they open."""
