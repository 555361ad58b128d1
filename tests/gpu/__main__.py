"""What can only be shown on a GPU, in one command, within nine minutes: `python -m tests.gpu`.

1. The card: its matrix peak, and attention (flash-attn's kernel where it is installed, and our SDPA by segments) equal
   to SDPA's math in float64, outputs and gradients.
2. Llama shapes of random weights, the 1B and the largest that `plan` says fits with fp32 AdamW on this one card, 8k
   packed: tokens/s and MFU of cathpc's loop against the matrix peak that was just measured and the data sheet's, its
   peak memory against `plan`, and TRL's SFTTrainer on the same rows where it is importable.
3. The deterministic mode: a training that goes on from a checkpoint equals one that never stopped, to the bit.

Needs torch, transformers, deepspeed, pyarrow and psutil; takes flash-attn, liger-kernel and trl (with datasets) where
they are, and says where they are not. Writes `results/<card>-<date>.json` and prints a table. What fails or finds no
time is a line in both and does not hinder the rest; the exit code is 1 where something failed or was not equal, 2
where something needed is missing. `--tiny` does it all on the CPU with tiny models: it proves no figure, only this
program.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from tests.gpu import parts, told

RESULTS = Path(__file__).parent / "results"
NEEDED = ("torch", "transformers", "deepspeed", "pyarrow", "psutil")


def main() -> int:
    """All parts, the file, the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="on the CPU, with tiny models")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which what is left is left out")
    parser.add_argument("--peer-path", type=Path, help="folder that holds TRL")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    chosen = parser.parse_args()
    if missing := [name for name in NEEDED if not parts.installed(name)]:
        print(f"tests.gpu needs {', '.join(missing)}, which are not installed", file=sys.stderr)
        return 2
    began = time.monotonic()
    top = Path(tempfile.mkdtemp(prefix="cathpc-gpu-"))
    session = parts.Session(chosen, top)
    found = session.found
    try:
        found["card"] = session.part("card", partial(parts.card, session))
        about = found["card"].get("card", {})
        shapes = parts.choose(session, about.get("free", float("inf"))) if about else []
        for number, (name, *how) in enumerate(shapes):
            both = partial(parts.train, session, name, *how, about)
            found["training"][name] = session.part(name, both, needs_s=60.0)
            if number == 0:
                found["deterministic"] = session.part("deterministic", partial(parts.same, session), needs_s=60.0)
    finally:
        shutil.rmtree(top, ignore_errors=True)
    found["goals"] = {} if chosen.tiny else told.goals(found)
    found["seconds"] = round(time.monotonic() - began, 1)
    card = re.sub(r"[^A-Za-z0-9]+", "-", about.get("name", "none")).strip("-")
    chosen.out.mkdir(exist_ok=True)
    file = chosen.out / f"{card}-{found['date'][:10]}.json"
    file.write_text(json.dumps(found, indent=1) + "\n")
    print(told.table(found))
    print(f"\n{found['seconds']:.0f} s; {file}")
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
