"""Example options of every variant, for the suites that run over all of them; a new variant adds its line here."""

from __future__ import annotations

from typing import Any

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "quantization": [{"format": "awq"}, {"format": "smoothquant"}, {"format": "llm_int8"}, {"kv": 8}],
}
