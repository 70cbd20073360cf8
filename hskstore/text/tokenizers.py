"""A tokenizer as data: its files without paths, and one hash that says whether two tokenizers split text alike."""

import hashlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from hskstore.errors import ModelError, StoreError
from hskstore.text.table import half_a_character

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""What a fast tokenizer is made of. Nothing else is read from a store: no vocabulary scripts, no code."""

PLACES = ("name_or_path", "_name_or_path", "is_local", "local_files_only", "tokenizer_file", "vocab_file")
"""Keys of tokenizer_config.json that tell where it was, not what it is."""

TYPES = "token_type_ids"


class Tokenizer(Protocol):
    """What is used of a Hugging Face fast tokenizer."""

    backend_tokenizer: Any
    """The one of the tokenizers library, in Rust."""
    model_max_length: int
    pad_token_id: int | None
    unk_token: str | None
    unk_token_id: int | None
    is_fast: bool
    all_special_tokens: list[str]
    model_input_names: list[str]
    init_kwargs: dict[str, Any]
    """What tokenizer_config.json says, and what is saved in it."""

    def __len__(self) -> int:
        """Words, added ones too."""
        ...

    def __call__(self, *text: list[str], **options: Any) -> Any:
        """A batch of rows of one column or two, encoded."""
        ...

    def num_special_tokens_to_add(self, *, pair: bool) -> int: ...

    def convert_ids_to_tokens(self, ids: list[int]) -> list[Any]: ...

    def save_pretrained(self, save_directory: str) -> Any: ...


def encode(tokenizer: Tokenizer, *text: list[str], **options: Any) -> Any:
    """Rows of one column or two, encoded without padding. Raises ModelError where the tokenizer fails at them."""
    try:
        return tokenizer(*text, padding=False, **options)
    except BaseException as error:
        # A tokenizer.json can be read and still contradict itself; Rust then panics, which is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        cause = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
        raise ModelError(f"{name}: its tokenizer fails at the texts ({cause}): mend its tokenizer.json") from error


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """Of what decides the token ids: vocabulary, normaliser, model, template; not padding or truncation."""
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    document.pop("padding", None)
    document.pop("truncation", None)
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def pad_id(tokenizer: Tokenizer) -> int:
    """Behind the last token of a row in a batch; of a tokenizer without padding none counts, as padding is masked."""
    return tokenizer.pad_token_id or 0


def highest_id(tokenizer: Tokenizer) -> int:
    """Of all tokens; there may be gaps below it, so that it says nothing of how many they are, nor they of it."""
    return int(max(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=True).values()))


def says_types(tokenizer: Tokenizer) -> bool:
    """Whether its files, or its class, say if a model reads its token types. A generic class gives none and says nothing."""
    return TYPES in tokenizer.model_input_names or "model_input_names" in tokenizer.init_kwargs


def name_types(tokenizer: Tokenizer, given: bool) -> None:
    """Have the tokenizer give token types, or none, and say so in the files that are saved of it."""
    names = ["input_ids", TYPES, "attention_mask"] if given else ["input_ids", "attention_mask"]
    tokenizer.model_input_names = names
    tokenizer.init_kwargs["model_input_names"] = names


def makes_types(tokenizer: Tokenizer, columns: int) -> bool:
    """Whether its template tells the tokens of a row of so many columns apart by type."""
    encoded = encode(tokenizer, *[["a"]] * columns, truncation=False, return_token_type_ids=True)
    return any(encoded[TYPES][0])


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The files that `save_pretrained` writes, by name, without padding, truncation or the place they came from."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {name: Path(folder, name).read_bytes() for name in FILES if Path(folder, name).exists()}
    config = {name: value for name, value in json.loads(files["tokenizer_config.json"]).items() if name not in PLACES}
    return {**files, "tokenizer_config.json": json.dumps(config, indent=1, sort_keys=True).encode()}


def model_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """The same, as a model's folder has them: by names that transformers 4 knows too, and 5 reads as its own."""
    files = tokenizer_files(tokenizer)
    config = json.loads(files["tokenizer_config.json"])
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(config.get("extra_special_tokens"), list):
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    return {**files, "tokenizer_config.json": json.dumps(config, indent=1, sort_keys=True).encode()}


def tokenizer_from_files(files: Mapping[str, bytes]) -> Tokenizer:
    """The tokenizer of a store, read as data. Raises StoreError where the files do not make one."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        for name in FILES:
            if name in files:
                Path(folder, name).write_bytes(files[name])
        try:
            tokenizer: Tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever the libraries make of a stranger's files
            cause = str(error).strip().partition("\n")[0]
            raise StoreError(f"the store's tokenizer cannot be loaded ({cause})") from None
    return tokenizer


def load_tokenizer(name: str) -> Tokenizer:
    """A fast tokenizer, from a folder or a hub name. Raises ModelError."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # whatever the libraries make of a stranger's files
        raise ModelError(f"{name}: no tokenizer could be loaded ({str(error).strip().partition(chr(10))[0]})") from None
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):  # transformers makes an empty one where it finds no files
        raise ModelError(f"{name} has no tokenizer: its files (tokenizer.json or vocab.txt) are missing")
    if not tokenizer.is_fast:
        raise ModelError(f"{name}: its tokenizer is not a fast one; convert it to tokenizer.json first")
    if fault := half_a_character(json.dumps(tokenizer.init_kwargs, default=str, ensure_ascii=False)):
        raise ModelError(f"{name}/tokenizer_config.json holds {fault}: mend or remove its text")
    if not isinstance(tokenizer.init_kwargs.get("auto_map", {}), dict):  # it would be saved, and not loaded again
        raise ModelError(f"{name}: auto_map is {tokenizer.init_kwargs['auto_map']!r} among its tokenizer's files: leave it out")
    longest, unknown = tokenizer.model_max_length, tokenizer.unk_token
    if isinstance(longest, bool) or not isinstance(longest, int | float) or not longest >= 1:
        raise ModelError(f"{name}/tokenizer_config.json: model_max_length is {longest!r}, and must be a number above zero")
    if unknown is not None and tokenizer.backend_tokenizer.token_to_id(str(unknown)) is None:
        raise ModelError(f"{name}/tokenizer_config.json: unk_token is {str(unknown)!r}, which is no word of tokenizer.json")
    return tokenizer
