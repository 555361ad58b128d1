"""Tiny models with random weights, for tests and the smoke experiment: every stage runs on them in seconds.

In goes a kind, out comes a model folder; the bytes depend on nothing but this file and the libraries' versions. `llama`
has Llama-3's shape in small: byte-level BPE with its split, its special tokens behind the vocabulary, a post-processor
that adds a BOS, an output layer of its own, untrained rows for reserved tokens and those of chat. `bert` is a BERT
encoder with WordPiece.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from cathpc.models.weights import write_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCABULARY = 1000
"""Ordinary tokens of random:llama."""
SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(4)),
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|reserved_special_token_4|>",
    "<|eot_id|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(5, 11)),
)
"""Its special tokens, in the order of Llama-3's 256; the base's pretraining saw the first two alone."""
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UNTRAINED = 1e-3  # factor on rows of tokens that a real base never trained

TEXT = """
The system message says who you are and how you answer. A user asks a question; the assistant reads it, thinks about it
step by step, and then gives a helpful, honest and complete answer. If the question is not clear, the assistant asks for
what is missing. If the answer is a list, each item has its own line. Here are some of the things that people ask about.

First, consider the numbers. Two and two make four; ten times ten is one hundred. Because each of the three boxes holds
twelve apples, there are thirty-six apples in total. Therefore the price of all apples is eighteen dollars. However, if
one box is empty, only twenty-four apples remain. Let us check this result: 3 x 12 = 36, and 36 / 2 = 18. So it is
right.

Second, health. You should drink enough water, sleep for seven or eight hours, and walk every day. A doctor can tell you
more: please see a doctor when the pain does not go away within a few days, when you have a fever, or when you take
other medicine. The symptoms may have several causes, such as stress, too little sleep, an infection or an allergy.
Since I am not able to examine you, I cannot be certain, but I can explain what is likely and what you can do about
it.

Third, stories and characters. The old captain looked at the sea and said: "We sail at dawn, my friend. The wind is on
our side, and nobody knows these waters better than I do." The young woman laughed. "You said that last time," she
answered, "and we lost a ship." He smiled, took his hat, and walked slowly down the road to the harbour, where the
boats were waiting.

Fourth, science and technology. Water boils at one hundred degrees because its molecules gain enough energy to leave the
liquid. Light is faster than sound; that is why we see the lightning before we hear the thunder. A computer program is a
list of instructions. A function takes some input, does its work and returns a result, for example:

    def area(width, height):
        return width * height

    for name, value in items:
        print(name, value)

Fifth, daily life. To make bread, mix flour, water, salt and yeast, let the dough rest, then bake it until it is
brown. To write a good letter, say what you want in the first sentence, be polite, and keep it short. To learn a
language, read and speak every day, even when it is difficult. To plan a journey, choose a place, look at the weather,
book the train, and take only what you need. Before you buy something, compare the price, the quality and the service.

Sometimes the right answer is no. I am sorry, but I cannot help with that request, since it could hurt other people.
Instead, I would suggest talking to someone you trust. On the other hand, many questions only sound dangerous; although
they need care, a clear explanation does more good than silence. In short: think first, answer next, and stop when done.

Which country has the most people? Where does the river begin? When was the first book printed? Who wrote this song, and
why is it still known? How do birds find their way? What is the difference between weather and climate? Can you explain
this idea to a child? Could you give me three reasons, with an example for each of them? Would you please check my text?
Yes, of course. Sure, here it is. No problem. Thank you very much! You are welcome. Good morning, how are you today?
"""
"""What the tokenizers are made from; also the language that a smoke run sees most of."""


def build(kind: str, folder: Path) -> None:
    """Write the random model `kind` ('llama' or 'bert') to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    {"llama": _llama, "bert": _bert}[kind](folder)


def _llama(folder: Path) -> None:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = _llama_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    bos, end = SPECIAL[:2]
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": end, "model_max_length": 2048},
    )
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=False,
        bos_token_id=tokenizer.token_to_id(bos),
        eos_token_id=tokenizer.token_to_id(end),
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    untrained = [tokenizer.token_to_id(token) for token in SPECIAL[2:]]
    with torch.no_grad():
        model.model.embed_tokens.weight[untrained] *= _UNTRAINED
        model.lm_head.weight[untrained] *= _UNTRAINED
    ends = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    model.generation_config = GenerationConfig.from_dict(ends)
    model.save_pretrained(folder)


def _llama_tokenizer() -> Tokenizer:
    """Byte-level BPE of `TEXT` and its special tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    bos = SPECIAL[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def _bert(folder: Path) -> None:
    import torch
    from transformers import BertConfig, BertModel

    tokenizer, special = _bert_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **dict(zip(names, special, strict=True)),
            "model_max_length": 512,
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        },
    )
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config)
    model.save_pretrained(folder)


def _bert_tokenizer() -> tuple[Tokenizer, list[str]]:
    """WordPiece over the letters and the words of `TEXT`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = Counter(w for w, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(TEXT.lower()))
    characters = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"))
    pieces = [*characters, *(f"##{c}" for c in characters if c.isalnum()), "##ed", "##ing", "##ly", "##er", "##ion"]
    pieces += sorted((w for w in words if len(w) > 1), key=lambda w: (-words[w], w))
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(special + pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return tokenizer, special
