"""Config of endpoints that speak OpenAI's protocol: one that the cards are written by, and how a server is started."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

from cathpc.schema import speed

VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
"""Names of environment variables that may hold a key; no key looks like one."""

KEY_ENV = "OPENAI_API_KEY"
"""The usual variable, with the key of a service on the Internet."""


class Engine(Enum):
    """The server of a model."""

    vllm = "vllm"
    """vLLM, in the environment that `serving.environment` names."""
    transformers = "transformers"
    """`transformers serve`, of cathpc's own environment."""


@dataclass
class ServingConfig:
    """Group-less section `serving`: how a server is started, by the act `serve` or for the cards; no result depends
    on it."""

    environment: str = speed("")
    """Folder of the environment that `slurm/vllm-env` built; '' there is none, and `transformers serve` is taken."""
    start_s: float = speed(1800.0)
    """A server that is not ready after so many seconds is given up; a 70B takes some minutes to load."""
    arguments: list[str] = speed(factory=list)
    """Further arguments of `vllm serve`, such as ['--max-model-len', '8192']; no code of a model and no key."""


@dataclass
class EndpointConfig:
    """`cards.endpoint`: who answers where `cards.writer` is openai. What the model is decides a card, where it runs and
    how fast it is asked does not."""

    url: str = speed("")
    """Base URL, such as https://api.openai.com/v1 or http://node7:8000/v1; '' where `serve` starts a server."""
    model: str = ""
    """The model's name there; '' is that of `cards.model`."""
    key_env: str = speed(KEY_ENV)
    """Name of the environment variable that holds the key. The key itself stands in no config, file or log. Over plain
    HTTP to another machine the usual variable is refused: name that of the endpoint's own key, set or not."""
    serve: Engine | None = speed(None)
    """Start this server for `cards.model` in the job itself, and end it with it: vllm or transformers."""
    concurrency: int = speed(16)
    """Requests in flight of one task of the array."""
    requests_per_minute: float = speed(0.0)
    """Of one task of the array; 0 sets no limit, and what the endpoint says (429) is heeded in any case."""
    timeout_s: float = speed(300.0)
    """Of one request."""
    retries: int = speed(4)
    """Times that a text is asked for again where the answer is an error of its own, empty or no JSON; then it counts as
    refused. An endpoint that does not answer costs a text nothing: an error is the text's own where another text, or a
    card that is asked for to find out, is answered meanwhile."""
    give_up_s: float = speed(1800.0)
    """How long an endpoint is waited for that is down, overloaded or has no room; then the job ends and comes back."""
    budget_usd: float = speed(0.0)
    """All that may be spent on this model with these prompts, by all tasks and attempts together; 0 sets no limit. A
    request whose answer is lost counts as the most that it may have cost."""
    usd_per_million_input: float = speed(0.0)
    """Price of 10^6 tokens that are read."""
    usd_per_million_output: float = speed(0.0)
    """Price of 10^6 tokens that are written."""


def beside(url: str) -> bool:
    """Whether the endpoint is on this machine, where no proxy is in between."""
    return urlsplit(url).hostname in ("127.0.0.1", "localhost", "::1")


def overheard(url: str) -> bool:
    """Whether what is sent there can be read on the way: plain HTTP to another machine."""
    return not beside(url) and urlsplit(url).scheme != "https"


def faults_of_serving(serving: ServingConfig) -> list[str]:
    """What of the config of a server must not be."""
    faults = [
        f"serving.arguments: {argument} is refused: no code of a model is run, and the key and the address are cathpc's"
        for argument in serving.arguments
        if argument.partition("=")[0].replace("_", "-")
        in ("--trust-remote-code", "--api-key", "--host", "--port", "--uds", "--middleware", "--served-model-name")
    ]
    return faults if serving.start_s > 0 else [*faults, f"serving.start_s is {serving.start_s}: it must be positive"]


def faults_of(endpoint: EndpointConfig, serving: ServingConfig, model: str, where: str = "cards.endpoint") -> list[str]:
    """What of the config of an endpoint cannot work; one message a fault. `model` is the model that would be served."""
    faults = []
    if bool(endpoint.url) == bool(endpoint.serve):
        faults.append(f"{where}: give either url (of an endpoint) or serve=vllm|transformers (start one), one of them")
    if endpoint.url and not endpoint.url.startswith(("http://", "https://")):
        faults.append(f"{where}.url is {endpoint.url!r}: it must start with http:// or https://")
    if "@" in endpoint.url.partition("://")[2].partition("/")[0] or "?" in endpoint.url:
        faults.append(
            f"{where}.url holds a name, a key or a query: keys go into the variable that {where}.key_env names"
        )
    if not (endpoint.model or model):
        faults.append(f"{where}.model is empty: give the model's name at the endpoint")
    if endpoint.serve and not model:
        faults.append(f"{where}.serve is {endpoint.serve.name}: name the model to serve with cards.model")
    if endpoint.serve is Engine.vllm and not serving.environment:
        faults.append(
            f"{where}.serve is vllm: build its environment (slurm/vllm-env FOLDER), name it in serving.environment"
        )
    if not VARIABLE.fullmatch(endpoint.key_env):  # which may be the key itself: it is not repeated
        faults.append(f"{where}.key_env must be the name of an environment variable, such as {KEY_ENV}")
    elif endpoint.key_env == KEY_ENV and endpoint.url and overheard(endpoint.url):
        faults.append(
            f"{where}.url is plain HTTP to another machine, where {KEY_ENV} could be read. Name the variable "
            f"of this endpoint's own key, whether it is set or not: {where}.key_env=MY_ENDPOINT_KEY"
        )
    for name in ("concurrency", "timeout_s", "give_up_s"):
        if getattr(endpoint, name) <= 0:
            faults.append(f"{where}.{name} is {getattr(endpoint, name)}: it must be greater than 0")
    for name in ("requests_per_minute", "retries", "budget_usd", "usd_per_million_input", "usd_per_million_output"):
        if getattr(endpoint, name) < 0:
            faults.append(f"{where}.{name} is {getattr(endpoint, name)}: it must not be negative")
    if endpoint.budget_usd and not (endpoint.usd_per_million_input or endpoint.usd_per_million_output):
        faults.append(
            f"{where}.budget_usd is {endpoint.budget_usd}: it needs prices, usd_per_million_input and _output"
        )
    return faults
