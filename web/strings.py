"""What the page says, in the language that it was started with: the table is strings.yaml."""

from pathlib import Path

import yaml

TABLE = yaml.safe_load(Path(__file__).with_name("strings.yaml").read_text(encoding="utf-8"))
LANGUAGES = ("en", "zh")
language = "en"  # webui.py sets it


def text(key: str, **values) -> str:
    return TABLE["page"][key][language].format(**values)
