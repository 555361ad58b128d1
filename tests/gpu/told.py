"""What a run of `python -m tests.gpu` found, for people: results in, lines of text out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.bench.contenders import OURS, PEER

GOALS = {"MFU": 0.50, "ratio": 1.1, "memory": 0.10}
"""Of the measured matrix peak; times TRL's tokens/s; largest relative distance from `plan`."""
GIB = 2**30


def table(found: dict[str, Any]) -> str:
    """All of it."""
    parts = [_card(found["card"]), _versions(found["versions"])]
    parts += [_training(name, one) for name, one in found["training"].items() if "train" in one]
    parts.append(_deterministic(found["deterministic"]))
    lines = [line for part in parts for line in part]
    lines += [f"{word}: {_short(why)}" for word in ("failed", "skipped") for why in found[word]]
    return "\n".join(lines + [f"goal {name}: {text}" for name, text in found["goals"].items()])


def _short(why: str) -> str:
    """The first and the last line, where an error says what it is."""
    first, *rest = why.splitlines()
    return " ... ".join([first, *rest[-1:]])


def _card(its: dict[str, Any]) -> Iterator[str]:
    if "card" not in its:
        return
    about = its["card"]
    sheet = f" (data sheet: {about['sheet_flops'] / 1e12:.0f})" if about.get("sheet_flops") else ""
    size = f", {about['memory'] / GIB:.1f} GiB" if "memory" in about else ""
    yield f"{about['name']}{size}: {about['peak']['tflops']:.3g} TFLOP/s in bfloat16{sheet}"
    for case in its["attention"]:
        verdict = "equal to" if case["equal"] else "NOT EQUAL TO"
        yield (
            f"attention {case['kind']}, {case['case']}, {case['dtype']}: {verdict} SDPA's math, "
            f"{max(case['errors'].values()):.1e} apart at most (tolerance {its['tolerance'][case['dtype']]:g})"
        )


def _versions(numbers: dict[str, str]) -> Iterator[str]:
    yield ", ".join(f"{name} {number or 'is not there'}" for name, number in numbers.items())


def _training(name: str, one: dict[str, Any]) -> Iterator[str]:
    how, plan = one["train"], one["plan"]
    yield (
        f"\n{name}: {one['parameters']:,} parameters, rows of {one['seq_len']} tokens, {how['global_batch']} a step, "
        f"attention {how['attention']}, activation checkpointing {'on' if how['activation_checkpointing'] else 'off'}"
    )
    yield (
        f"{'':<10}{'tokens/s':>10}{'least':>10}{'most':>10}{'MFU':>8}{'of sheet':>10}{'first step s':>14}"
        f"{'first loss':>12}{'tensors GiB':>13}{'reserved GiB':>14}"
    )
    for contender in (OURS, PEER):
        row = one[contender]
        if "tokens_per_s" not in row:
            yield f"{contender:<10}{_short(row.get('skipped') or row['failed'])}"
            continue
        took = row.get("memory", {})
        sheet = f"{row['mfu_sheet']:.1%}" if "mfu_sheet" in row else ""
        yield (
            f"{contender:<10}{row['tokens_per_s']:>10,.0f}{row['least']:>10,.0f}{row['most']:>10,.0f}{row['mfu']:>8.1%}"
            f"{sheet:>10}{row['first_step_s']:>14.1f}{row['first_loss']:>12.4f}"
            f"{took.get('allocated', 0) / GIB:>13.2f}{took.get('reserved', 0) / GIB:>14.2f}"
        )
    share = f"; {plan['of_measured']:.3f} of what {OURS} took" if "of_measured" in plan else ""
    yield f"{'plan':<10}{plan['tensors'] / GIB:>87.2f}{plan['total'] / GIB:>14.2f}  (peak: {plan['peak']}{share})"
    if "ratio" in one:
        yield f"{OURS}: {one['ratio']:.2f} times TRL; first losses differ by {one['losses_apart']:.1e}"


def _deterministic(its: dict[str, Any]) -> Iterator[str]:
    if "equal" in its:
        verdict = "is the same as" if its["equal"] else "IS NOT THE SAME AS"
        how = f"to the bit ({its['tensors']} tensors)"
        yield f"\na resumed deterministic training {verdict} an uninterrupted one, {how}"


def goals(found: dict[str, Any]) -> dict[str, str]:
    """Each goal, and whether it was reached, where it was measured."""
    shapes = [one for one in found["training"].values() if "plan" in one]
    mfus = [one[OURS]["mfu"] for one in shapes if "mfu" in one[OURS]]
    ratios = [one["ratio"] for one in shapes if "ratio" in one]
    apart = [abs(share - 1) for one in shapes if (share := one["plan"].get("of_measured"))]
    told = {}
    if mfus:
        told["MFU"] = _goal(
            max(mfus) >= GOALS["MFU"], f"{max(mfus):.1%} of the measured peak, {GOALS['MFU']:.0%} asked"
        )
    if ratios:
        told["ratio"] = _goal(min(ratios) >= GOALS["ratio"], f"{min(ratios):.2f} times TRL, {GOALS['ratio']} asked")
    if apart:
        told["memory"] = _goal(
            max(apart) <= GOALS["memory"], f"plan is {max(apart):.1%} off, {GOALS['memory']:.0%} asked"
        )
    return told


def _goal(reached: bool, text: str) -> str:
    return f"{'reached' if reached else 'missed'}: {text}"
