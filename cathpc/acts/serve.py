"""Act `serve`: an endpoint that speaks OpenAI's protocol for a trained model, on this machine or as a Slurm job.

In: an experiment whose model is exported, or any Hugging Face folder. Out: a server that ends with this command
(Ctrl-C), or a job; its URL and key stand in `runs/<name>/serve.json`, for its owner alone, where `chat` finds them.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from cathpc.errors import UserError
from cathpc.serving.config import Engine

if TYPE_CHECKING:
    from cathpc.config import Config
    from cathpc.dispatch.requests import Shape
    from cathpc.serving.served import Served

HELP = "serve the trained model: an OpenAI-compatible endpoint here or as a Slurm job"


def options(parser: argparse.ArgumentParser) -> None:
    """What is served, by what, and what becomes of a server that is there."""
    parser.add_argument("--model", type=Path, help="any Hugging Face folder, instead of an experiment's model")
    parser.add_argument(
        "--engine", choices=[e.name for e in Engine], help="vllm where it is installed, else transformers"
    )
    parser.add_argument("--gpus", type=int, help="GPUs that share the model (what it needs to fit)")
    parser.add_argument("--status", action="store_true", help="say whether it is served, and where")
    parser.add_argument("--stop", action="store_true", help="end it")


def main(arguments: argparse.Namespace) -> int:
    """Serve, or say or end what is served."""
    from cathpc.acts import program
    from cathpc.serving import served

    config, name, folder = placed(arguments.model, arguments.overrides)
    known = served.read(folder)
    if arguments.model and known and known.folder not in ("", str(arguments.model.resolve())):
        if not arguments.status and _lives(config, known):
            same = shlex.join(["--model", known.folder, *arguments.overrides])
            raise UserError(f"{name} is {known.folder} already; end that server first: {program()} serve {same} --stop")
        known = None
    if arguments.stop:
        return _end(config, folder, known, name)
    if arguments.status or (known and _lives(config, known)):
        return _tell(config, known, name, folder, arguments)
    from cathpc.acts.chat import exported

    model = arguments.model.resolve() if arguments.model else exported(config, arguments.overrides).absolute()
    return _serve(config, model, name, folder, arguments)


def placed(model: Path | None, overrides: list[str]) -> tuple[Config, str, Path]:
    """The config, and name and folder of what is served: of the run, or of `model` where that is a folder's model."""
    from cathpc.config import compose, run_name

    config = compose(overrides, model=model)
    name = f"serve-{model.resolve().name}" if model else run_name(config, overrides)
    return config, name, Path(config.paths.runs).absolute() / name


def chosen(model: Path | None, overrides: list[str]) -> str:
    """The model and the overrides as they stand on a command line."""
    return shlex.join([*(["--model", str(model)] if model else []), *overrides])


def _serve(config: Config, model: Path, name: str, folder: Path, arguments: argparse.Namespace) -> int:
    from cathpc.dispatch.config import ClusterKind
    from cathpc.dispatch.requests import shape
    from cathpc.models.weights import tensors
    from cathpc.pipeline import BY_NAME
    from cathpc.serving import job, server

    if not model.is_dir():
        raise UserError(f"there is no model folder {model}; --model takes a Hugging Face folder with safetensors")
    tensors(model)
    engine = Engine[arguments.engine] if arguments.engine else server.engine(config.serving)
    if engine is Engine.vllm:
        server.vllm(config.serving)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if config.cluster.kind is ClusterKind.slurm:
        took = shape(BY_NAME["evaluate"], config)
        if arguments.gpus is not None:
            took = dataclasses.replace(took, gpus=arguments.gpus, partition=config.cluster.partition)
        return _submit(config, took, engine, model, name, folder, chosen(arguments.model, arguments.overrides))
    print(f"starting {engine.name} for {model}; Ctrl-C ends it, or `serve --stop` elsewhere", flush=True)
    print(f"its key will stand in {folder / 'serve.json'}, for you alone", flush=True)
    gpus = arguments.gpus or 1
    return job.hold(model, name, engine, config.serving, folder, host=server.LOOPBACK, gpus=gpus)


def _submit(config: Config, took: Shape, engine: Engine, model: Path, name: str, folder: Path, same: str) -> int:
    """One job, without the trap that brings stages back: a server that ends has been stopped, or is at fault."""
    from cathpc.acts import program
    from cathpc.config import as_plain
    from cathpc.dispatch import requests, script
    from cathpc.serving import served
    from cathpc.store import write_json

    spec = folder / "serve-spec.json"
    content = {
        "model": str(model),
        "name": name,
        "engine": engine.name,
        "serving": as_plain(config.serving),
        "run": str(folder),
        "gpus": max(1, took.gpus),
    }
    write_json(spec, content)
    request = script.Request(
        name=f"{requests.COMMENT}.serve.{name}",
        stage="serve",
        spec=spec,
        content=content,
        logs=folder / "logs" / "serve",
        partition=took.partition,
        timeout_min=took.timeout_min,
        cpus_per_task=took.cpus,
        gpus_per_node=took.gpus,
        mem_gb=took.mem_gb,
        lead_s=30,
        mounts=(*requests.mounts(config), model),
        comment=name,
        module="cathpc.serving.job",
    )
    number = script.send(request, config.cluster)
    found = served.read(folder)
    if found is None or found.job != number:  # else it was quicker
        served.write(folder, served.Served(name, engine.name, job=number, folder=str(model)))
    print(f"job {number} will serve {name}. When it does, and where: {program()} serve {same} --status")
    return 0


def _lives(config: Config, known: Served) -> bool:
    """Whether a server or its job is there; where the queue cannot be asked, that it is."""
    from cathpc.dispatch import slurm
    from cathpc.serving import served

    if known.job:
        alive = slurm.live_jobs(config.cluster, lambda q: q.base == known.job)
        return alive is None or bool(alive)
    return served.runs(known) is not False


def _tell(config: Config, known: Served | None, name: str, folder: Path, arguments: argparse.Namespace) -> int:
    from cathpc.acts import program
    from cathpc.serving import served

    if known is None or not _lives(config, known):
        print(f"{name} is not served")
        if known is not None:
            served.forget(folder, known)
        return 1
    if not known.url:
        print(f"{name}: {known.holder} has not started its server yet; its log: {folder / 'logs' / 'serve'}")
        return 0
    state = "answers" if known.answers else "does not answer from here"
    print(f"{name} is served at {known.url} by {known.engine} ({known.holder}): it {state}")
    same = chosen(arguments.model, arguments.overrides)
    print(f"  key   {folder / 'serve.json'}\n  chat  {program()} chat {same}")
    return 0


def _end(config: Config, folder: Path, known: Served | None, name: str) -> int:
    from cathpc.dispatch import slurm
    from cathpc.serving import served

    if known is None:
        print(f"{name} is not served")
        return 0
    if known.job:
        served.forget(folder)  # first: a job that finds its record takes itself for preempted
        slurm.cancel(config.cluster, [known.job])
    else:
        served.end(known)
        served.forget(folder)
    print(f"{name}: stopped")
    return 0
