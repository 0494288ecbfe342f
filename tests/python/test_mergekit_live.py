"""Slices and vocabularies beside mergekit, on one YAML file each: all tensors, the config, the tokenizer.
mergekit_meaning.py tells what tensors may differ in."""

import json
import pathlib
import subprocess
import sys

import mergekit_cases
import mergekit_live_cases
import numpy as np
import pytest
import tokenizers
import tools
import yaml
from mergekit_meaning import Vocabulary, compare

HERE = pathlib.Path(__file__).parent
ALL = {**mergekit_live_cases.CASES, **mergekit_live_cases.EARLIER}
MORE_SOURCES = "more sources in the last slice"
CHAT = [{"role": "user", "content": "a c"}, {"role": "assistant", "content": "b"}]
TEXTS = ("abcdxyzq", "<s>ab</s>cd", "<|im_start|>a<|im_end|>", "eadd<late>")


def make_models(folder, how):
    return how(folder) if callable(how) else mergekit_live_cases.write_models(folder, **how)


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """Every case merged by mergekit, in one process: {case: (config, folder)}."""
    folder, found, models, words = tmp_path_factory.mktemp("live"), {}, {}, []
    for number, (case, (how, text)) in enumerate({**ALL, MORE_SOURCES: mergekit_live_cases.MORE_SOURCES}.items()):
        kind = str(how)
        if kind not in models:
            models[kind] = make_models(folder / f"models {len(models)}", how)
        config = folder / f"{number}.yaml"
        found[case] = (config, folder / f"out {number}")
        words += [tools.write_config(config, mergekit_cases.text_of(case, models[kind], {case: text})), found[case][1]]
    # The order in which mergekit takes models is that of a set's.
    result = subprocess.run([sys.executable, HERE / "run_mergekit.py", "--copy-tokenizer", *words], timeout=280,
                            env=tools.environment({"PYTHONHASHSEED": "0"}), capture_output=True, text=True)  # fmt: skip
    assert result.returncode == 0, result.stderr[-4000:]
    return found


def tokens_of(folder):
    """The tokens that have rows, with their rows."""
    vocabulary = tokenizers.Tokenizer.from_file(str(pathlib.Path(folder) / "tokenizer.json")).get_vocab()
    rows = json.loads((pathlib.Path(folder) / "config.json").read_text())["vocab_size"]
    return {token: row for token, row in vocabulary.items() if row < rows}


def models_of(config):
    """The paths of all models in a config."""
    if isinstance(config, dict):
        return {v for k, v in config.items() if k in ("model", "base_model") and isinstance(v, str)}.union(
            *(models_of(v) for v in config.values()))  # fmt: skip
    return set().union(*map(models_of, config)) if isinstance(config, list) else set()


def compare_configs(ours, theirs):
    """The keys of config.json that differ, as transformers reads it, and both configs."""
    import transformers

    found = [transformers.AutoConfig.from_pretrained(folder).to_dict() for folder in (ours, theirs)]
    for config in found:
        for key in ("_name_or_path", "transformers_version"):
            config.pop(key, None)
    return {k for k in found[0].keys() | found[1].keys() if found[0].get(k) != found[1].get(k)}, found


def same_tokenizer(ours, theirs):
    """Added tokens with their settings, how texts are cut, chat templates: as transformers has them."""
    import transformers

    a, b = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (ours, theirs))

    def added(tokenizer):
        return {str(t): repr(t) for t in tokenizer.added_tokens_decoder.values()}

    assert added(a) == added(b)
    assert (a.bos_token, a.eos_token) == (b.bos_token, b.eos_token)
    assert bool(a.chat_template) == bool(b.chat_template)
    if a.chat_template:
        assert a.apply_chat_template(CHAT, tokenize=False) == b.apply_chat_template(CHAT, tokenize=False)
    for text in TEXTS:
        assert a.convert_ids_to_tokens(a(text).input_ids) == b.convert_ids_to_tokens(b(text).input_ids), text


@pytest.mark.parametrize("case", ALL)
def test_beside_mergekit(case, merged, tmp_path):
    path, theirs = merged[case]
    text, ours = path.read_text(), tmp_path / "out"
    config = yaml.safe_load(text)
    tools.merge(path, ours)
    vocabulary, tensors = None, []
    if config.get("tokenizer_source") or config.get("tokenizer"):
        found, wanted = tokens_of(ours), tokens_of(theirs)
        assert found.keys() == wanted.keys()
        vocabulary = Vocabulary(text, sorted(found), {m: tokens_of(m) for m in models_of(config)})
        if "base_model" in config:  # else theirs is that of any model, and adds the others' tokens to it
            same_tokenizer(ours, theirs)
    for folder in (ours, theirs):
        own = {n: tools.values(t) for n, t in tools.read_model(folder).items()}
        tensors.append(mergekit_cases.by_token(folder)[0] if vocabulary else own)
    layers = 2 if "tokens: " in case else 3
    counts = compare(case, text, *tensors, layers, vocabulary)
    assert counts["ties"] == counts["election"] == counts["angle"] == 0
    differing, configs = compare_configs(ours, theirs)
    if "base_model" not in config:
        differing.discard("bos_token_id")  # mergekit's config is that of any model
    expected = mergekit_live_cases.OTHER_CONFIG.get(case, set())
    assert differing == expected, [(k, configs[0].get(k), configs[1].get(k)) for k in differing ^ expected]


def test_more_sources_in_the_last_slice(merged, tmp_path):
    path, folder = merged[MORE_SOURCES]
    text = path.read_text()
    tools.merge(path, tmp_path / "out")
    ours, theirs = ({n: tools.values(t) for n, t in tools.read_model(f).items()} for f in (tmp_path / "out", folder))
    after = ("model.norm.weight", "lm_head.weight")
    b, c = (tools.read_model(s["model"]) for s in yaml.safe_load(text)["slices"][1]["sources"])
    for name in after:
        assert np.array_equal(theirs.pop(name), b[name][1])
        np.testing.assert_allclose(ours.pop(name), (2 * b[name][1].astype(np.float64) + c[name][1]) / 3, rtol=0, atol=1e-6)
    compare(MORE_SOURCES, text, ours, theirs, 3)
