"""Act `chat`: talk to a model folder in the terminal.

In goes a Hugging Face folder, out come answers, token by token. A folder that cathpc exported is asked in exactly the
ids that training saw; any other in those of its own chat template. Time: one forward pass over the conversation, then
one a token; memory: the weights and the keys and values of the conversation.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cathpc.errors import UserError

if TYPE_CHECKING:
    import torch

    from cathpc.record import Message

KEYS = (
    "/reset forgets the conversation, /system TEXT sets the system message, /exit leaves. "
    "Ctrl-C ends an answer, Ctrl-D leaves."
)


HELP = "talk to the trained model in the terminal"


def options(parser: argparse.ArgumentParser) -> None:
    """What is said, and to which model."""
    parser.add_argument("--model", type=Path, help="any Hugging Face folder, instead of an experiment's model")
    parser.add_argument("--system", default="", help="the system prompt")
    parser.add_argument("--prompt", help="say this, print the answer and leave")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token (%(default)s)")
    parser.add_argument("--seed", type=int, help="draw the same answer every time")


def main(arguments: argparse.Namespace) -> int:
    """Chat with the folder of --model, or with the exported model of the experiment."""
    chat(
        arguments.model or _exported(arguments.overrides),
        system=arguments.system,
        prompt=arguments.prompt,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
    )
    return 0


def _exported(overrides: list[str]) -> Path:
    """Folder of the experiment's trained model; a `UserError` where it is not trained yet."""
    from cathpc.config import compose
    from cathpc.store import places

    config = compose(overrides)
    export = places(config)["export"]
    if export.manifest() is None:
        raise UserError(
            f"{config.name} has no trained model yet. Train it: python -m cathpc {shlex.join(overrides)}; "
            "or name a Hugging Face folder with --model"
        )
    return export.folder / "model"


def chat(
    model_folder: Path,
    *,
    system: str = "",
    prompt: str | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0.7,
    seed: int | None = None,
) -> None:
    """Answer `prompt` and return, or read prompts from standard input until it ends.

    `temperature` 0 takes the likeliest token; `seed` None draws another answer every time. Raises a `UserError` where
    the folder has no safetensors or no chat template, or where the conversation is longer than the model's context.
    """
    if temperature < 0:
        raise UserError(f"--temperature {temperature} is negative; 0 takes the likeliest token, 0.7 is usual")
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens} leaves no room for an answer; it must be 1 or more")
    speaker = Speaker(Path(model_folder), max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    history: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    if prompt is not None:
        if not prompt.strip():
            raise UserError("--prompt is empty; say something, or leave it out to chat")
        _answer(speaker, [*history, {"role": "user", "content": prompt}], write=_writer())
        return
    _converse(speaker, history)


def _converse(speaker: Speaker, history: list[Message]) -> None:
    """The loop of reading and answering; `history` grows with it."""
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (line editing and history of `input`)
        print(KEYS)
    write = _writer()
    while True:
        try:
            line = input("\nyou> " if terminal else "").strip()
        except EOFError:
            if terminal:
                print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D leaves)")
            continue
        command, _, rest = line.partition(" ")
        if not line:
            continue
        if command == "/exit":
            return
        if command == "/reset":
            history[:] = [m for m in history if m["role"] == "system"]
            print("(the conversation is forgotten)")
        elif command == "/system":
            text = rest.strip()
            history[:] = ([{"role": "system", "content": text}] if text else []) + [
                m for m in history if m["role"] != "system"
            ]
            print("(the system message is set)" if text else "(no system message)")
        elif command.startswith("/"):
            print(f"(there is no {command}) {KEYS}")
        else:
            try:
                answer = _answer(speaker, [*history, {"role": "user", "content": line}], write=write)
            except UserError as error:
                print(f"({error})")
                continue
            if answer:
                history += [{"role": "user", "content": line}, {"role": "assistant", "content": answer}]


def _answer(speaker: Speaker, messages: list[Message], *, write: Callable[[str], None]) -> str:
    """Stream one answer to the terminal and return it; Ctrl-C ends it early, between two tokens."""
    pieces: list[str] = []
    interrupted: list[int] = []
    # A flag, not an exception: a second Ctrl-C while the first is dealt with must not end the conversation.
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupted.append(number))
    try:
        for piece in speaker.stream(messages):
            pieces.append(piece)
            write(_printable(piece))
            if interrupted:
                write(" [interrupted]")
                break
        write("\n")
    finally:
        signal.signal(signal.SIGINT, before)
    return "".join(pieces).strip()


def _writer() -> Callable[[str], None]:
    """How pieces of an answer are shown: in colour on a terminal, as they are elsewhere."""
    if sys.stdout.isatty():
        from rich.console import Console

        console = Console(highlight=False)
        return lambda text: console.out(text, style="cyan", end="")

    def plain(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    return plain


def _printable(text: str) -> str:
    """`text` without control characters: what a model writes must not steer the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


class Speaker:
    """A loaded model and how it is asked."""

    def __init__(self, folder: Path, *, max_new_tokens: int, temperature: float, seed: int | None) -> None:
        """Load the model in `folder`: bfloat16 on a GPU and on CPUs that compute in it, else float32."""
        import torch

        from cathpc.models import talk

        self.folder = folder
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature
        self.model = talk.load(folder)
        self.device = self.model.device
        language = talk.language(folder, self.model)
        self.raw, self.encode, self.stops = language.raw, language.encode, language.stops
        self.generator = torch.Generator(device=self.device)
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    def stream(self, messages: list[Message]) -> Iterator[str]:
        """Pieces of the answer to `messages` as they come; ends at the stop token or after `max_new_tokens`."""
        from tokenizers.decoders import DecodeStream

        ids = self.encode(messages)
        limit = getattr(self.model.config, "max_position_embeddings", None) or sys.maxsize
        if len(ids) >= limit:
            raise UserError(
                f"the conversation has {len(ids):,} tokens, the model's context {limit:,}; "
                "ask something shorter, or /reset"
            )
        decoder = DecodeStream(skip_special_tokens=True)
        for token in self._tokens(ids, min(self.max_new_tokens, limit - len(ids))):
            piece = decoder.step(self.raw, token)  # None in the middle of a character
            if piece:
                yield piece

    def _tokens(self, ids: list[int], most: int) -> Iterator[int]:
        import torch

        with torch.inference_mode():
            step = torch.tensor([ids], device=self.device)
            cache: Any = None
            for _ in range(most):
                output = self.model(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache = output.past_key_values
                token = self._choose(output.logits[0, -1].float())
                if token in self.stops:
                    return
                yield token
                step = torch.tensor([[token]], device=self.device)

    def _choose(self, logits: torch.Tensor) -> int:
        if self.temperature == 0:
            return int(logits.argmax())
        shares = (logits / self.temperature).softmax(dim=-1)
        return int(shares.multinomial(1, generator=self.generator))
