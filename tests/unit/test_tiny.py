import pytest
import torch

from headwater.model.tiny import SMALLEST_VOCABULARY, SPECIAL_TOKENS, chat_text, tiny_llama_config, tiny_model, tiny_tokenizer
from headwater.types import UsageError

TEXTS = ["the ketch sails at dawn", "the canoe sails at dusk"] * 20


def test_any_text_survives_the_tokenizer():
    tokenizer = tiny_tokenizer(TEXTS, vocab_size=400)
    for text in ("the ketch sails", "  spaces  and\nlines\t", "Zürich, naïve, 水, 🚣", "\x00\x1f"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_frequent_words_become_single_tokens():
    tokenizer = tiny_tokenizer(TEXTS, vocab_size=400)
    assert tokenizer.tokenize("the ketch sails") == ["the", "Ġketch", "Ġsails"]


def test_special_tokens_come_first_and_are_named():
    tokenizer = tiny_tokenizer(TEXTS, vocab_size=400)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.padding_side == "right"


def test_without_texts_the_bytes_remain():
    tokenizer = tiny_tokenizer(())
    assert len(tokenizer) == SMALLEST_VOCABULARY
    assert len(tokenizer("ketch", add_special_tokens=False)["input_ids"]) == 5


def test_the_chat_template_writes_chat_text():
    tokenizer = tiny_tokenizer(TEXTS)
    user, assistant = {"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."}
    whole = tokenizer.apply_chat_template([user, assistant], tokenize=False)
    assert whole == "<s>" + chat_text("Where?", "Here.")
    opening = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    assert whole == opening + "Here.</s>"


def test_a_saved_tokenizer_is_the_same(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = tiny_tokenizer(TEXTS, vocab_size=300)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = chat_text("the ketch?", "sails at dusk, naïvely")
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.chat_template == tokenizer.chat_template
    assert again.pad_token_id == 0


def test_a_vocabulary_that_cannot_hold_the_bytes_is_refused():
    with pytest.raises(UsageError, match="at least 261"):
        tiny_tokenizer(TEXTS, vocab_size=260)


def test_the_seed_decides_the_weights_and_nothing_else_does():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    first, again, other = tiny_model(0), tiny_model(0), tiny_model(1)
    torch.testing.assert_close(torch.random.get_rng_state(), before)
    torch.testing.assert_close(first.model.state_dict(), again.model.state_dict(), rtol=0, atol=0)
    assert not torch.equal(first.model.lm_head.weight, other.model.lm_head.weight)


def test_the_default_size_is_small_and_options_win():
    model = tiny_model(0, texts=TEXTS, num_hidden_layers=2).model
    assert model.config.num_hidden_layers == 2
    full = tiny_llama_config(vocab_size=2048)
    assert (full.num_hidden_layers, full.hidden_size, full.tie_word_embeddings) == (4, 128, False)


def test_the_model_reads_what_the_tokenizer_writes():
    model, tokenizer = tiny_model(0, texts=TEXTS)
    tokens = tokenizer("the ketch", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert model(input_ids=tokens).logits.shape == (1, tokens.shape[1], len(tokenizer))
