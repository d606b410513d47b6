"""Whether a tokenizer and a model speak of the same tokens."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from assent.errors import ModelError


def unused_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that the model gives logits to and that no token has: vocabularies are padded to round sizes, and some have
    holes. They must not be sampled. Log-probs stay those of the whole vocabulary, as in transformers."""
    used = set(tokenizer.get_vocab().values())
    return [i for i in range(_rows(model)) if i not in used]


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Raises ModelError where text can become ids that the model has no embedding for. Special tokens beyond it are no
    harm as long as neither the chat template writes them nor an answer ends with one (some text models come with the
    image token of their composite sibling)."""
    rows = _rows(model)
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows}
    special = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    template = str(tokenizer.chat_template or "")
    written = {i for i, text in special.items() if text in template} | {tokenizer.bos_token_id, tokenizer.eos_token_id}
    met = {token: i for token, i in beyond.items() if i not in special or i in written}
    if met:
        token, i = min(met.items(), key=lambda item: item[1])
        last = max(beyond.values())
        raise ModelError(
            f"{path}: its tokenizer has ids up to {last}, its embedding {rows} rows, so {len(met)} tokens, first "
            f"{token!r} ({i}), have none. Use the tokenizer that the model was trained with, or give the model rows "
            f"for them: model.resize_token_embeddings({last + 1}) in transformers, then save."
        )


def _rows(model: PreTrainedModel) -> int:
    rows: int = model.get_input_embeddings().weight.shape[0]
    return rows
