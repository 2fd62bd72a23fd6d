"""What a run's records cannot know of its model, for the model card: licence, languages, words."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BeforeValidator, Field, field_validator, model_validator

from llamita.recipes.settings import Settings

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")
_FILE = re.compile(r"[\w.-]+")


def _as_list(value: object) -> object:
    """`en` may stand for `[en]`; YAML reads a bare `no`, Norwegian, as false."""
    found = [value] if isinstance(value, str | bool) else value
    if isinstance(found, list) and any(isinstance(item, bool) for item in found):
        raise ValueError("YAML reads yes and no as true and false: quote the code, as in ['no']")
    return found


class Card(Settings):
    """README.md beside the model in `final/`, where the run's records have nothing to say. Nothing
    is computed by it, and a run that is done writes a changed card."""

    license: str | None = None
    """As the Hugging Face hub spells licences, SPDX in lower case (`apache-2.0`), or `other`. null:
    the card says that none was given."""
    license_name: str | None = None
    """With `other`: what it is called."""
    license_link: str | None = None
    """With `other`: where it can be read, an address or a file beside the model."""
    language: Annotated[list[str], BeforeValidator(_as_list)] = Field(default_factory=list)
    """ISO 639 codes: `en`, `de`, `gsw`, with a region where it matters (`pt-BR`)."""
    title: str | None = None
    """The card's heading; by default the run's name."""
    about: str | None = None
    """A paragraph or more of Markdown under it."""

    @field_validator("license")
    @classmethod
    def _known_spelling(cls, value: str | None) -> str | None:
        found = None if value is None else value.lower()
        if found is not None and not _LICENCE.fullmatch(found):
            raise ValueError(
                f"{value!r} is no licence's identifier; write one of SPDX's such as apache-2.0, or "
                "other with license_name and license_link"
            )
        return found

    @field_validator("language")
    @classmethod
    def _codes(cls, value: list[str]) -> list[str]:
        for code in value:
            if not _LANGUAGE.fullmatch(code):
                raise ValueError(
                    f"{code!r} is no language's code; write ISO 639's two or three letters in "
                    "lower case, such as en or gsw"
                )
        if len(set(value)) != len(value):
            raise ValueError(f"{', '.join(value)}: each can be named once")
        return value

    @field_validator("title", "license_name")
    @classmethod
    def _one_line(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip() or not value.isprintable()):
            raise ValueError(f"{value!r}: write one line of text")
        return value

    @model_validator(mode="after")
    def _named_where_other(self) -> Card:
        named = {"license_name": self.license_name, "license_link": self.license_link}
        if self.license == "other":
            missing = [key for key, value in named.items() if value is None]
            if missing:
                raise ValueError(f"license: other needs {' and '.join(missing)}")
        elif any(value is not None for value in named.values()):
            idle = [key for key, value in named.items() if value is not None]
            raise ValueError(f"{' and '.join(idle)}: only with license: other")
        link = self.license_link
        if link is not None and not (
            link.startswith(("https://", "http://")) or _FILE.fullmatch(link)
        ):
            raise ValueError(
                f"license_link: {link!r} is neither an address (https://…) nor the name of a file "
                "beside the model"
            )
        return self
