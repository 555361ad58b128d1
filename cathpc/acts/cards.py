"""Act `cards`: a look at the system cards before their hours are spent.

`cards preview -n 20` writes the cards of n kept records, spread evenly over all, prints each record with its card, and
reckons tokens, hours and cost for the whole. What it wrote is kept in the cache, so that the same preview costs nothing
again. Time grows with n; the records have to be selected first.
"""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from cathpc.errors import UserError

if TYPE_CHECKING:
    from cathpc.cards.rounds import Outcome, Row
    from cathpc.config import Config

HELP = "print some records with the cards that they would get, and what all cards would cost"
SHOWN_CHARS = 400
"""Of a turn that is printed."""


def options(parser: argparse.ArgumentParser) -> None:
    """What to do, and of how many records."""
    parser.add_argument("what", choices=["preview"], help="'preview' is all there is")
    parser.add_argument("-n", "--number", type=int, default=20, metavar="N", help="records to write cards for (20)")


def main(arguments: argparse.Namespace) -> int:
    """Write and print the cards of a few records, then the estimate."""
    from cathpc import store
    from cathpc.acts import program
    from cathpc.config import compose

    if arguments.number < 1:
        raise UserError(f"--number is {arguments.number}: at least one record")
    config = compose(arguments.overrides)
    place = store.places(config)["select"]
    if not place.fresh():
        words = shlex.join(arguments.overrides)
        raise UserError(f"no records are selected yet for these overrides. Do that first: {program()} {words}")
    return preview(config, place.folder / "kept.parquet", arguments.number)


def preview(config: Config, kept: Path, number: int) -> int:
    """Print the cards of `number` records of the file `kept`, and the estimate for all of it."""
    import pyarrow.parquet as pq

    from cathpc.cards import enact, rounds
    from cathpc.store import digest

    total = int(pq.read_metadata(kept).num_rows)
    if not total:
        raise UserError(f"{kept} holds no record: no card to show. Look at the drops: cathpc status, or explain")
    rows = pq.read_table(kept).take(spread(total, number)).to_pylist()
    rows = [enact.enacted(row, config.cards.enact) for row in rows]
    out = Path(config.paths.cache) / "previews" / digest({"kept": str(kept)})[:16]
    out.mkdir(parents=True, exist_ok=True)
    outcomes = rounds.carder(config.cards, Path(config.paths.cache), out, 0, 0, len(rows), config.serving)(rows)
    for row, outcome in zip(rows, outcomes, strict=True):
        print(shown(row, outcome))
    print(estimate(config, outcomes, total))
    return 0


def spread(total: int, number: int) -> list[int]:
    """`number` positions (at most `total`) that lie evenly in range(total)."""
    number = min(number, total)
    return [at * total // number for at in range(number)]


def shown(row: Row, outcome: Outcome) -> str:
    """A record and its card, as text for a terminal."""
    failed = "; ".join(f"{name}: {seen}" for name, seen in outcome.checks.items() if seen)
    parts = [f"── {row['id']}  {row['component']}  {outcome.verdict}" + (f"  ({failed})" if failed else "")]
    parts += [f"   {line}" for line in outcome.text.splitlines()]
    for message in row["messages"]:
        if message["role"] != "system":
            text = " ".join(message["content"].split())
            cut = text[:SHOWN_CHARS] + (" ..." if len(text) > SHOWN_CHARS else "")
            parts.append(f"{message['role']:>9}  {cut}")
    if outcome.answer:
        parts.append(f"{'said as':>9}  {' '.join(outcome.answer.split())[:SHOWN_CHARS]}")
    return "\n".join(parts) + "\n"


def estimate(config: Config, outcomes: list[Outcome], total: int) -> str:
    """Verdicts, and what all `total` records would take by the mean of these: tokens, hours on such a machine, cost."""
    cards = config.cards
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in Counter(o.verdict for o in outcomes).most_common())
    lines = [f"{len(outcomes)} of {total:,} records: {verdicts}"]
    scale = total / len(outcomes)
    written, read = (scale * sum(getattr(o, key) for o in outcomes) for key in ("tokens", "prompt_tokens"))
    if written:
        seconds = scale * sum(o.seconds for o in outcomes)
        tasks = max(1, min(config.cluster.arrays.get("cards", 1), -(-total // cards.shard_records)))
        shared = f", {seconds / 3600 / tasks:,.2f} on each of {tasks} array tasks" if tasks > 1 else ""
        lines.append(f"all of them: about {written:,.0f} tokens written, {read:,.0f} read")
        if seconds:
            rate = f"{written / seconds:,.0f} tokens/s"
            lines.append(f"about {seconds / 3600:,.2f} hours at the {rate} of this machine{shared}")
        prices = cards.endpoint.usd_per_million_input, cards.endpoint.usd_per_million_output
        if any(prices):
            cost = (read * prices[0] + written * prices[1]) / 1e6
            lines.append(f"about {cost:,.2f} USD at {prices[0]:g} a million tokens read and {prices[1]:g} written")
        else:
            lines.append("no cost: prices stand in cards.endpoint.usd_per_million_input and usd_per_million_output")
    return "\n".join(lines)
