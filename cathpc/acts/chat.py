"""Act `chat`: talk to a model in the terminal: a folder, or an endpoint where it is served.

In goes a Hugging Face folder or an endpoint, out come answers, token by token, thoughts in grey. A folder that cathpc
exported is asked in exactly the ids that training saw; any other in those of its own chat template. Time: one forward
pass over the conversation, then one a token; memory: the weights and the keys and values of the conversation. An
endpoint costs neither, and no torch.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
import unicodedata
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cathpc.errors import UserError
from cathpc.evaluate.thoughts import THOUGHT, Splitter
from cathpc.serving.config import KEY_ENV, overheard

if TYPE_CHECKING:
    import torch

    from cathpc.config import Config
    from cathpc.record import Message

KEYS = (
    "/reset forgets the conversation, /system TEXT sets the system message, /exit leaves. "
    "Ctrl-C ends an answer, Ctrl-D leaves."
)
GREY = "grey58"

HELP = "talk to the trained model in the terminal, here or where it is served"


class Voice(Protocol):
    """Whoever answers: `Speaker`, or `cathpc.serving.remote.Remote`."""

    def stream(self, messages: list[Message]) -> Generator[str]:
        """Pieces of the answer to `messages` as they come."""


def options(parser: argparse.ArgumentParser) -> None:
    """What is said, and to which model."""
    parser.add_argument(
        "--model", help="any Hugging Face folder, loaded here or served by `serve --model`; the model's name at --url"
    )
    parser.add_argument("--url", help="an endpoint that speaks OpenAI's protocol, such as http://node7:8000/v1")
    parser.add_argument(
        "--key-env", help=f"variable with the key for --url ({KEY_ENV}, which is not sent over plain HTTP unless named)"
    )
    parser.add_argument("--local", action="store_true", help="load the model here, even if it is served elsewhere")
    parser.add_argument("--system", default="", help="the system prompt")
    parser.add_argument("--prompt", help="say this, print the answer and leave")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="longest answer (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token (%(default)s)")
    parser.add_argument("--seed", type=int, help="draw the same answer every time")


def main(arguments: argparse.Namespace) -> int:
    """Chat with the model of --url or --model, or with the experiment's: where it is served, or loaded here."""
    from cathpc.serving.server import Endpoint

    model = Path(arguments.model) if arguments.model else None
    settings = {
        "max_new_tokens": arguments.max_new_tokens,
        "temperature": arguments.temperature,
        "seed": arguments.seed,
    }
    said = {"system": arguments.system, "prompt": arguments.prompt}
    if arguments.url:
        key, where = _key(arguments.url, arguments.key_env)
        _remote(Endpoint(arguments.url, arguments.model or "", key), where, settings, said)
        return 0
    if model and arguments.local:
        chat(model, **settings, **said)
        return 0
    from cathpc.acts.serve import chosen, placed
    from cathpc.serving import served

    config, _, folder = placed(model, arguments.overrides)
    known = None if arguments.local else served.read(folder)
    if known is None or (model and known.folder != str(model.resolve())):  # served is another folder of its name
        chat(model or exported(config, arguments.overrides), **settings, **said)
        return 0
    if not known.answers:
        where = f"at {known.url}" if known.url else f"by job {known.job}"
        raise UserError(
            f"{known.model} is to be served {where}, which does not answer: python -m cathpc serve "
            f"{chosen(model, arguments.overrides)} --status; --local loads it here instead"
        )
    _remote(known.endpoint, str(folder / served.FILE), settings, said)
    return 0


def _remote(endpoint: Any, key_from: str, settings: dict[str, Any], said: dict[str, Any]) -> None:
    from cathpc.serving.remote import Remote

    _check(**settings)
    with contextlib.closing(Remote(endpoint, key_from=key_from, **settings)) as voice:
        talk(voice, **said)


def _key(url: str, named: str | None) -> tuple[str, str]:
    """The key for an endpoint and where it comes from, in words. The usual variable holds the key of another service:
    unless it is named, it goes only to where nobody can read it on the way."""
    from cathpc.serving.remote import secret

    if not named and overheard(url):
        return "", f"no variable: {KEY_ENV} is not sent over plain HTTP unless you name it with --key-env"
    variable = named or KEY_ENV
    key = secret(variable)
    return key, f"the environment variable {variable}" + ("" if key else ", which is not set")


def exported(config: Config, overrides: list[str]) -> Path:
    """Folder of the experiment's trained model; a `UserError` where it is not trained yet."""
    from cathpc.store import places

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
    """Answer `prompt` and return, or read prompts from standard input until it ends, with the model loaded here.

    `temperature` 0 takes the likeliest token; `seed` None draws another answer every time. Raises a `UserError` where
    the folder has no safetensors or no chat template, or where the conversation is longer than the model's context.
    """
    _check(max_new_tokens=max_new_tokens, temperature=temperature)
    speaker = Speaker(Path(model_folder), max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    talk(speaker, system=system, prompt=prompt)


def _check(*, max_new_tokens: int, temperature: float, seed: int | None = None) -> None:
    if temperature < 0:
        raise UserError(f"--temperature {temperature} is negative; 0 takes the likeliest token, 0.7 is usual")
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens} leaves no room for an answer; it must be 1 or more")


def talk(voice: Voice, *, system: str = "", prompt: str | None = None) -> None:
    """Let `voice` answer `prompt`, or whatever standard input says until it ends."""
    history: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    if prompt is not None:
        if not prompt.strip():
            raise UserError("--prompt is empty; say something, or leave it out to chat")
        _answer(voice, [*history, {"role": "user", "content": prompt}])
        return
    _converse(voice, history)


def _converse(voice: Voice, history: list[Message]) -> None:
    """The loop of reading and answering; `history` grows with it."""
    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (line editing and history of `input`)
        print(KEYS)
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
                answer = _answer(voice, [*history, {"role": "user", "content": line}])
            except UserError as error:
                print(f"({error})")
                continue
            if answer:
                history += [{"role": "user", "content": line}, {"role": "assistant", "content": answer}]


def _answer(voice: Voice, messages: list[Message]) -> str:
    """Stream one answer to the terminal and return it; Ctrl-C ends it early, between two tokens."""
    pieces: list[str] = []
    interrupted: list[int] = []
    write = _writer()
    # A flag, not an exception: a second Ctrl-C while the first is dealt with must not end the conversation.
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupted.append(number))
    try:
        with contextlib.closing(voice.stream(messages)) as stream:
            for piece in stream:
                pieces.append(piece)
                write(_printable(piece), False)
                if interrupted:
                    break
        write("", True)
        print(" [interrupted]" if interrupted else "", flush=True)
    finally:
        signal.signal(signal.SIGINT, before)
    return "".join(pieces).strip()


def _writer() -> Callable[[str, bool], None]:
    """How the pieces of one answer are shown, the last one marked: on a terminal thoughts in grey and without their
    tags, the answer as other text; elsewhere as they come."""
    if not sys.stdout.isatty():

        def plain(text: str, last: bool) -> None:
            sys.stdout.write(text)
            sys.stdout.flush()

        return plain
    from rich.console import Console

    console = Console(highlight=False)
    splitter = Splitter()
    before = ""

    def coloured(text: str, last: bool) -> None:
        nonlocal before
        for kind, part in splitter.feed(text, last=last):
            if kind != before:
                part = part.lstrip()
                if not part:
                    continue
                if before:
                    console.out("\n\n", end="")
                before = kind
            console.out(part, style=GREY if kind == THOUGHT else None, end="")

    return coloured


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

    def stream(self, messages: list[Message]) -> Generator[str]:
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
