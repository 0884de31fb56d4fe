"""The demo model: its grammar and training, the shipped files, and the text that it writes."""

import importlib
import itertools
import json
import random
import re
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO_MODEL = REPOSITORY / "server" / "tgis_server" / "demo_model"

sys.path.insert(0, str(REPOSITORY / "scripts"))  # scripts are not a package; they import each other the same way
grammar = importlib.import_module("demo_grammar")
making = importlib.import_module("make_demo_model")

STORY = (
    "Once upon a time, there was a kind girl named Anna. She loved to sing. "
    "One sunny day, Anna went to the forest. She found a red ball under an old oak. "
    "The ball belonged to Ben, so Anna took it back to him. "
    'Ben smiled and said, "Thank you, Anna!" '
    "Then they played with the red ball until the evening. Anna was happy, and so was Ben.\n"
    "Question: Where did Anna go? Answer: Anna went to the forest."
)
BIRTHDAY = (
    "Tom was a brave boy. One windy morning, he ran to the lake. "
    "It was the birthday of Mia, and Tom wanted to give her a present. "
    "He found an orange kite and put it in a box. Mia opened the box and saw the orange kite. "
    "It was a good day for Tom and Mia."
)
STATEMENT = (
    "Ben lost a blue kite at the beach.\n"
    "Question: What did Ben lose at the beach?\nAnswer: Ben lost a blue kite at the beach."
)


# --- The grammar -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(grammar.LANGUAGE))
def test_the_grammar_accepts_every_kind_of_text_that_it_writes(kind: str) -> None:
    rng = random.Random(kind)

    texts = [grammar.write(grammar.language()[kind], {}, rng) for _ in range(20)]

    assert [grammar.parse(text) for text in texts] == [[grammar.parse_text(text)] for text in texts]


def test_a_document_of_several_texts_parses_into_their_kinds() -> None:
    kinds = grammar.parse(f"{BIRTHDAY}\n\n{STATEMENT}\n\n{STORY}")

    assert kinds == ["story/birthday", "statement", "reading/returned"]


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        pytest.param(STORY, "so was Ben", "so was Tom", id="another name"),
        pytest.param(STORY, "belonged to Ben", "belonged to Anna", id="owner is the finder"),
        pytest.param(STORY, "She found", "He found", id="pronoun of the hero"),
        pytest.param(STORY, "back to him", "back to her", id="pronoun of the friend"),
        pytest.param(STORY, "kind girl", "kind boy", id="girl or boy"),
        pytest.param(STORY, "with the red ball", "with the blue ball", id="colour changes"),
        pytest.param(STORY, "The ball belonged", "The kite belonged", id="object changes"),
        pytest.param(STORY, "under an old oak", "in the warm sand", id="spot of another place"),
        pytest.param(STORY, "under an old oak", "under a old oak", id="article"),
        pytest.param(STORY, "Answer: Anna went to the forest", "Answer: Anna went to the lake", id="wrong answer"),
        pytest.param(STORY, "Answer: Anna went", "Answer: Ben went", id="answer about someone else"),
        pytest.param(STORY, "Anna took it back to him. ", "", id="half a sentence missing"),
        pytest.param(STORY, "She found a red ball under an old oak. ", "", id="a needed sentence missing"),
        pytest.param(STORY, "Then they", "Then then they", id="doubled word"),
        pytest.param(STORY, "Answer: Anna went to the forest.", "Answer:", id="no answer"),
        pytest.param(STORY, "to the forest. She", "to the forest. The end. She", id="something inserted"),
        pytest.param(STORY, "sing. One", "singOne", id="space missing"),
        pytest.param(BIRTHDAY, "Mia opened", "Tom opened", id="present for oneself"),
        pytest.param(BIRTHDAY, "found an orange", "found a orange", id="article of a vowel"),
        pytest.param(BIRTHDAY, "saw the orange kite", "saw the orange cup", id="present changes"),
        pytest.param(STATEMENT, "Answer: Ben lost a blue", "Answer: Ben lost a red", id="another colour"),
        pytest.param(STATEMENT, "Answer: Ben lost", "Answer: Ben found", id="another verb"),
        pytest.param(STATEMENT, "lose at the beach", "lose on the beach", id="preposition"),
        pytest.param(STATEMENT, "did Ben lose", "did Tom lose", id="question about a stranger"),
    ],
)
def test_the_grammar_rejects_corrupted_text(text: str, right: str, wrong: str) -> None:
    assert grammar.parse(text)
    corrupted = text.replace(right, wrong, 1)
    assert corrupted != text

    with pytest.raises(grammar.GrammarError):
        grammar.parse(corrupted)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("What is two plus three? Answer: Two plus three is five.", "Two plus three is six."),
        ("What is 7 plus 8? Answer: 7 plus 8 is 15.", "7 plus 8 is 14."),
        ("What day comes after Sunday? Answer: Monday comes after Sunday.", "Tuesday comes after Sunday."),
        ("Where does the cat live? Answer: The cat lives in the house.", "The cat lives in a hive."),
        ("What is the opposite of hot? Answer: The opposite of hot is cold.", "The opposite of hot is hot."),
        (
            "Which animal is bigger, the cow or the cat? Answer: The cow is bigger than the cat.",
            "The cat is bigger than the cow.",
        ),
    ],
)
def test_the_grammar_knows_the_answers_of_its_world(right: str, wrong: str) -> None:
    question = right.split(" Answer: ")[0]

    assert grammar.parse(f"Question: {right}") == ["world"]
    with pytest.raises(grammar.GrammarError):
        grammar.parse(f"Question: {question} Answer: {wrong}")


def test_an_error_has_the_position_up_to_which_the_text_parses() -> None:
    with pytest.raises(grammar.GrammarError) as caught:
        grammar.parse(BIRTHDAY.replace("saw the orange", "saw the green"))

    assert caught.value.position == BIRTHDAY.index("orange kite. It")


@pytest.mark.parametrize("notation", ["{hero", "(one|two", "one]", "<{hero}"])
def test_an_unbalanced_pattern_is_refused(notation: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - an unclosed slot has the message of str.index
        grammar.read_pattern(notation)


# --- The training text -------------------------------------------------------------------------------------


def test_held_out_pairs_of_name_and_place_are_not_in_the_training_text() -> None:
    settings = making.Settings()
    documents = itertools.islice(making.training_documents(settings, "training"), 4000)
    texts = [text for document in documents for text in document.split(grammar.BLANK_LINE)]
    words = [
        (set(re.findall(r"\w+", text)), set(re.findall(r"(?:in|at|on|to|near) the (\w+)", text))) for text in texts
    ]

    met = [
        pair for pair in making.held_out_pairs(settings) for said, been in words if pair[0] in said and pair[1] in been
    ]

    assert met == []


def test_the_training_text_depends_only_on_the_seed() -> None:
    first, second, other = (
        list(itertools.islice(making.training_documents(making.Settings(seed=seed), "training"), 50))
        for seed in (7, 7, 8)
    )

    assert first == second
    assert first != other


# --- Training ----------------------------------------------------------------------------------------------


def train_a_tiny_model() -> dict[str, torch.Tensor]:
    settings = making.Settings(
        steps=4,
        tokens_per_step=256,
        long_row_tokens=128,
        long_rows_share=0.5,
        vocab_size=320,
        num_tokenizer_documents=200,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
    )
    model: torch.nn.Module = making.train_model(settings, making.train_tokenizer(settings))
    return model.state_dict()


def test_training_twice_gives_the_same_bits() -> None:
    first, second = train_a_tiny_model(), train_a_tiny_model()

    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_a_finished_directory_replaces_all_of_the_old_one(tmp_path: Path) -> None:
    output, finished = tmp_path / "model", tmp_path / "work" / "model"
    output.mkdir()
    (output / "old").write_text("old")
    finished.mkdir(parents=True)
    (finished / "new").write_text("new")

    making.put_in_place(finished, output)

    assert [file.name for file in output.iterdir()] == ["new"]
    assert list((tmp_path / "work").iterdir()) == []


# --- The shipped files -------------------------------------------------------------------------------------


def test_the_shipped_files_are_small_and_complete() -> None:
    sizes = {file.name: file.stat().st_size for file in DEMO_MODEL.iterdir()}

    assert sorted(sizes) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sum(sizes.values()) <= making.MAX_FILES_BYTES


def test_the_shipped_configuration_is_a_llama_with_shared_kv_heads_in_bfloat16() -> None:
    config = json.loads((DEMO_MODEL / "config.json").read_text())

    expected = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "dtype": "bfloat16",
        "tie_word_embeddings": True,
        "max_position_embeddings": 2048,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    assert {key: config[key] for key in expected} == expected


def test_the_shipped_generation_config_is_greedy_and_has_the_end_token() -> None:
    config = json.loads((DEMO_MODEL / "generation_config.json").read_text())

    assert (config["bos_token_id"], config["eos_token_id"], config["do_sample"]) == (0, 1, False)


@pytest.mark.parametrize("text", ["Once upon a time", "", " two  spaces\n", "Žluťoučký kůň 🦆 日本語\t\x00"])
def test_the_shipped_tokenizer_adds_a_begin_token_and_restores_the_text(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)

    begin, *ids = tokenizer(text)["input_ids"]

    assert (begin, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 0, 1)
    assert tokenizer.decode(ids) == text


def test_at_least_95_of_100_held_out_continuations_parse() -> None:
    prompts = making.held_out_prompts(making.Settings())

    continuations = making.continue_greedily(DEMO_MODEL, prompts)

    faults = [continuation.fault for continuation in continuations if continuation.fault]
    assert len(prompts) == 100
    assert len(faults) <= 5, faults


@pytest.mark.parametrize("prompt", ["Once upon a time", "Question: Where does the cat live?"])
def test_the_continuation_of_a_typical_first_prompt_follows_the_grammar(prompt: str) -> None:
    [continuation] = making.continue_greedily(DEMO_MODEL, [prompt])

    assert continuation.fault is None
