"""The special tokens of a checkpoint, gathered from the files that may name them, and made known to its tokenizer.

``tokenizer.json`` lists added tokens, but they may also stand in ``tokenizer_config.json`` alone
(``added_tokens_decoder``, ``bos_token`` and the like, ``additional_special_tokens``, ``extra_special_tokens``), or, in
older checkpoints, in ``special_tokens_map.json`` and ``added_tokens.json``, which count only where there is no
``added_tokens_decoder``. What goes before what, and the ids that new tokens get, are those of transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from speq.errors import SpeqError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_EXTRA, _OLD_EXTRA = "extra_special_tokens", "additional_special_tokens"


@dataclass(frozen=True)
class SpecialTokens:
    """Special tokens by their roles.

    Attributes:
        named: ``bos_token``, ``eos_token`` and other roles, also ones that only this model has.
        extra: those without a role.
        added: tokens beyond the vocabulary, not all of them special, in the order of their ids.
    """

    named: dict[str, AddedToken | str]
    extra: list[AddedToken | str]
    added: list[AddedToken]

    @property
    def names(self) -> dict[str, str]:
        """How the named tokens are written, by role."""
        return {role: str(token) for role, token in self.named.items()}

    def add_to(self, tokenizer: Tokenizer) -> None:
        """Make the tokenizer know these tokens; those that are not in its vocabulary get the next ids."""
        from tokenizers import AddedToken

        known = tokenizer.get_added_tokens_decoder().values()
        names = {token.content for token in [*known, *self.added]}
        new: list[AddedToken | str] = [*self.added]
        for token in [*self.named.values(), *self.extra]:
            if str(token) not in names and token not in new:
                new.append(token)
        named = set(self.names.values())
        tokens = []
        for token in new:
            if isinstance(token, str):
                token = AddedToken(token, special=True)
            elif token.content in named:
                token.special = True
            tokens.append(token)
        if tokens:
            tokenizer.add_tokens(tokens)


def gather(
    settings: Mapping[str, Any],
    special_map: Mapping[str, Any],
    added_ids: Mapping[str, Any],
    known: Mapping[int, AddedToken],
    model: str,
) -> SpecialTokens:
    """The special tokens of a checkpoint.

    Args:
        settings: content of ``tokenizer_config.json``.
        special_map: content of ``special_tokens_map.json``.
        added_ids: content of ``added_tokens.json``, ids by token.
        known: the added tokens of ``tokenizer.json``, by id.
        model: its name, for messages.

    Raises:
        SpeqError: an entry is neither a token nor what a token is described by.
    """
    from tokenizers import AddedToken

    found = dict(settings)
    if _OLD_EXTRA in found and not found.get(_EXTRA):
        found[_EXTRA] = found.pop(_OLD_EXTRA)
    own_roles = {key: found.pop(key) for key in list(found) if _is_role(key) and isinstance(found[key], str)}
    if isinstance(found.get(_EXTRA), dict):
        own_roles |= found.pop(_EXTRA)
    added: dict[int, AddedToken] = {}
    described: dict[str, AddedToken] = {}  # by content, also where two have one id
    if "added_tokens_decoder" in found:
        for index, entry in _mapping(found["added_tokens_decoder"], "added_tokens_decoder", model).items():
            token = _token(entry, "added_tokens_decoder", model)
            added[_index(index, model)] = described[token.content] = token
    else:
        for key, entry in special_map.items():
            if key == _EXTRA and isinstance(entry, list):
                extra = _sequence(found.get(_EXTRA) or [], model)
                tokens = [_named(token, _EXTRA, model) for token in entry]
                found[_EXTRA] = extra + [token for token in tokens if token not in extra]
            elif key != _EXTRA and isinstance(entry, dict):
                found[key] = _token(entry | {"special": True}, key, model)
            else:
                found[key] = entry
        if isinstance(found.get(_EXTRA), dict):
            own_roles |= found.pop(_EXTRA)
        extra = _sequence(found.get(_EXTRA) or [], model)
        special = {str(found[role]) for role in ROLES if found.get(role)} | {str(token) for token in extra}
        for content, index in added_ids.items():
            token = AddedToken(content, normalized=content not in special, special=content in special)
            added[_index(index, model)] = described[content] = token
        added |= known
        described |= {token.content: token for token in known.values()}
    named: dict[str, AddedToken | str] = {}
    for role in ROLES:
        if found.get(role) is not None:
            value = _named(found[role], role, model)
            named[role] = described.get(str(value), value)
    own_roles = {key: found[key] for key in found if _is_role(key)} | own_roles
    for role, entry in own_roles.items():
        if isinstance(entry, str | dict | AddedToken):
            named[role] = _named(entry, role, model)
    rest = found[_EXTRA] if _EXTRA in found else found.get(_OLD_EXTRA)
    extra = [_named(entry, _EXTRA, model) for entry in _sequence(rest or [], model)]
    return SpecialTokens(named, extra, [added[index] for index in sorted(added)])


def _is_role(key: str) -> bool:
    """Whether a key names a role that only this model has."""
    return key.endswith("_token") and key not in ROLES


def _named(entry: Any, role: str, model: str) -> AddedToken | str:
    return entry if isinstance(entry, str) else _token(entry, role, model, special=True)


def _token(entry: Any, key: str, model: str, *, special: bool = False) -> AddedToken:
    """A token from its description: ``content`` and flags."""
    from tokenizers import AddedToken

    if isinstance(entry, AddedToken):
        return entry
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise SpeqError(f"{model}: {key} holds {entry!r}, which describes no token; use --ids or mend the file")
    flags = {"special": special} | {flag: bool(entry[flag]) for flag in _FLAGS if flag in entry}
    return AddedToken(entry["content"], **flags)


def _index(index: Any, model: str) -> int:
    try:
        return int(index)
    except (TypeError, ValueError):
        raise SpeqError(f"{model}: an added token has the id {index!r}; ids are numbers") from None


def _mapping(entry: Any, key: str, model: str) -> Mapping[str, Any]:
    if not isinstance(entry, dict):
        raise SpeqError(f"{model}: {key} is {type(entry).__name__}, and an object is expected")
    return entry


def _sequence(entry: Any, model: str) -> list[Any]:
    if not isinstance(entry, list):
        raise SpeqError(f"{model}: {_EXTRA} is {type(entry).__name__}, and a list or an object is expected")
    return entry
