"""`transformers serve` for one folder behind the gate: `python -m cathpc.serving.transformers_server FOLDER HOST PORT`.

In: a folder of safetensors; key and name in the environment (`cathpc.serving.gate`). Out: an endpoint, until the
process is told to end. No code of the folder runs, and no other model can be asked for.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from cathpc.errors import CathpcError, UserError
from cathpc.serving.gate import KEY, NAME, Gate


def main(argv: list[str]) -> int:
    """Serve until the process is told to end."""
    folder, host, port = Path(argv[0]).absolute(), argv[1], int(argv[2])
    if not os.environ.get(KEY):
        raise UserError(f"{KEY} is not set: nothing is served without a key")
    from cathpc.models.weights import tensors

    tensors(folder)  # safetensors only
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers.cli.serving.server as server
    from transformers.cli.serve import Serve

    build = server.build_server

    def gated(manager: Any, *parts: Any, **named: Any) -> Any:
        for loaded in manager.loaded_models.values():
            loaded.model.generation_config.do_sample = True  # else a temperature is ignored; 0 is greedy still
        app = build(manager, *parts, **named)
        app.add_middleware(Gate)
        return app

    server.build_server = gated  # type: ignore[assignment]  # the same arguments, handed on
    name = os.environ[NAME]
    with tempfile.TemporaryDirectory(prefix="cathpc-serve-") as place:
        os.chdir(place)
        os.symlink(folder, name)  # requests must name the model as the server does, and that is by its path
        try:
            Serve(force_model=name, host=host, port=port, trust_remote_code=False)
        except ImportError as error:
            raise UserError(f"{error}. It comes with: pip install 'cathpc[endpoint]'") from None
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CathpcError as error:
        sys.exit(f"cathpc: {error}")
