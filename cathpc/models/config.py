"""Config of the models: the base to fine-tune, the chat template, the reference and pool GPTs, the refusal BERT."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from cathpc.models.shape import ShapeConfig
from cathpc.schema import speed


class Dtype(Enum):
    """Floating-point type of weights and activations."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class TemplateName(Enum):
    """The chat template."""

    chatml = "chatml"
    """<|im_start|>role, newline, content<|im_end|>, newline; with a BOS at the very start."""
    llama3 = "llama3"
    """Llama-3's native one: <|start_header_id|>role<|end_header_id|>, two newlines, content<|eot_id|>."""
    own = "own"
    """The one that the model's tokenizer brings."""


@dataclass
class TemplateConfig:
    """How conversations become tokens."""

    name: TemplateName = TemplateName.chatml
    """'chatml', 'llama3' or 'own'; each with one BOS, at position 0."""
    bos: str = ""
    """Token that starts every conversation; '' is the tokenizer's own BOS."""
    pad: str = ""
    """Padding token, another one than the stop token; '' is the tokenizer's own."""
    renames: dict[str, str] = field(default_factory=dict)
    """Reserved token -> control token ('<|reserved_special_token_0|>' -> '<|im_start|>')."""


@dataclass
class ModelConfig:
    """Group `model`: the model that is fine-tuned."""

    base: str = ""
    """A Hub id ('meta-llama/Meta-Llama-3-70B'), a folder ('./llama', '/models/llama'), 'package:NAME' (a Python
    package that carries a model) or 'random:llama' (a tiny model with random weights, for tests)."""
    template: TemplateConfig = field(default_factory=TemplateConfig)
    shape: ShapeConfig = speed(factory=ShapeConfig)
    """Its dimensions, for `plan` where the model is not at hand; stage `base` compares them with the model's."""


@dataclass
class GptConfig:
    """Group `gpt`: the reference GPT and the pool GPT."""

    base: str = ""
    """Named like `model.base`."""
    template: TemplateConfig = field(default_factory=TemplateConfig)
    reference_generators: list[str] = field(default_factory=lambda: ["gpt-4*", "gpt4*", "!*mini*", "!*nano*"])
    """Shell patterns of the generators whose answers train the reference; one that begins with '!' takes names out
    again, wherever it stands (quote it on the command line). All other named generators form the pool."""
    train_tokens: int = 100_000
    """Answer and prompt tokens that each GPT trains on."""
    epochs: int = 1
    """Passes over those tokens."""
    seq_len: int = 512
    """Longest conversation in tokens; a longer one is cut there."""
    batch_tokens: int = 2048
    """Tokens of a training step, padding included."""
    lr: float = 1e-4
    """Peak of the learning rate: AdamW, a warm-up of 5% of the steps, then a linear decay to a tenth."""
    heldout_share: float = 0.1
    """Share of the prompts that neither GPT trains on."""
    heldout_tokens: int = 8_000
    """Tokens of such prompts and their answers on which the perplexity is measured."""
    eval_every_tokens: int = 20_000
    """Training tokens between two looks at the perplexity of some of these answers, for the early stop; 0 is off."""
    patience: int = 2
    """Looks without a lower perplexity after which training stops. The weights of the lowest one are kept."""
    dtype: Dtype = Dtype.bfloat16
    """Of the matrix products; weights and optimizer are float32. bfloat16 is 2.6 times as fast on a CPU that has it,
    and on one that has not it means float32."""
    seed: int = 0
    """Of the split, of the choice of records and of their order."""


@dataclass
class RefusalConfig:
    """Group `refusal`: the classifier of refusals."""

    base: str = ""
    """Named like `model.base`; an encoder such as 'bert-base-uncased'."""
    max_len: int = 256
    """Tokens of a window, prompt included; a longer answer is read in windows that overlap."""
    prompt_len: int = 40
    """Tokens of the prompt that stand before each window, at most a quarter of it."""
    epochs: int = 3
    """Passes over all answers; what looks like a mislabelled one is left out of the second half of them."""
    batch_size: int = 16
    """Answers of a training step."""
    lr: float = 5e-5
    """Peak of the learning rate, which rises over the first tenth and falls to 0."""
    folds: int = 3
    """Classifiers that are trained without a part of the prompts each: their judgement of that part calibrates and
    measures the one that is trained on all."""
    trainings: int = 3
    """Classifiers that are trained on all prompts, each from another start and in another order: the mean of their
    weights is kept."""
    examples: str = ""
    """JSONL file of further answers to learn from (`prompt`, `answer`, `refuses`); '' is the one that ships with
    cathpc."""
    unlabelled: int = 1000
    """Answers of the pulled records that are learnt from as non-refusals, where they do not look like refusals."""
    cutoff: float = 0.2
    """Where precision and recall are reported."""
    seed: int = 0
    """Of the folds, of the choice of unlabelled answers and of their order."""


@dataclass
class ScoreConfig:
    """Group `score`."""

    window: int = 2048
    """Longest conversation that is scored, in tokens; a longer one gets the status 'too_long'. At most the context of
    `gpt.base`."""
    dtype: Dtype = Dtype.bfloat16
    """Of the scoring models; bfloat16 is within 0.01 nat a token of float32 on average, and on a CPU that has not got
    it it means float32."""
    batch_tokens: int = speed(1024)
    """Tokens a forward pass, padding included. What a batch needs should stay in the cache of a CPU's cores; a GPU
    wants some 32,768."""
    min_answer_tokens: int = 0
    """With the next three: records that selection will never want, whatever its thresholds; they are counted and not
    scored (status 'skipped'), and `select` drops them by its own rule of the same name, which must be as strict."""
    max_answer_tokens: int = 0
    """Most tokens of the last answer; 0 is any."""
    min_correlatives: int = 0
    """Least number of correlatives."""
    languages: list[str] = field(default_factory=list)
    """ISO 639-1 codes; [] is any."""
    lexicon: str = ""
    """YAML file of correlatives and step markers; '' is the one that ships with cathpc."""
    threads: int = speed(0)
    """CPU threads; 0 leaves torch's own choice."""

    def longest(self, context: int | None) -> int:
        """Tokens of the longest conversation that is scored by a model with this context; None is without end."""
        return min(self.window, context or self.window)
