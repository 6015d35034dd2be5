"""RoPE as configurations write it: ``rope_theta`` with ``rope_scaling``, or (newer) ``rope_parameters``."""

from __future__ import annotations

import math

from sim.reference.config_file import Config
from sim.reference.rope import RULES, Rope, Rule, yarn_attention_factor


def read_rope(config: Config, dim: int, kind: str = "full_attention", theta_key: str = "rope_theta") -> Rope:
    """The rotary embedding of a model over ``dim`` numbers of a head.

    ``kind`` picks the entry where ``rope_parameters`` has one for each kind of layer (Gemma 3); ``theta_key`` is where
    older files keep that kind's base. Raises ValueError on a scaling rule that is not implemented.
    """
    section = config.section("rope_parameters", "rope_scaling")
    if section is not None and isinstance(section.values.get(kind), dict):
        section = section.section(kind)
    elif section is not None and theta_key != "rope_theta":
        section = None  # the older form scales the global layers only
    theta = config.number(theta_key, 10_000.0)
    if section is None:
        return _checked(config, Rope(dim, theta))
    return _checked(section, _scaled(config, section, dim, section.number("rope_theta", theta)))


def _checked(config: Config, rope: Rope) -> Rope:
    """Refuse what the formulas divide by."""
    if rope.theta <= 1:
        raise config.bad("rope_theta", "a number above 1 is expected")
    if rope.rule == "llama3" and rope.high_freq_factor <= rope.low_freq_factor:
        raise config.bad("high_freq_factor", f"a number above low_freq_factor ({rope.low_freq_factor:g}) is expected")
    if rope.rule == "dynamic" and rope.dim < 4:
        raise ValueError(f"{config.path}: head_dim: {rope.dim} is not allowed, dynamic RoPE needs 4 or more")
    return rope


def _scaled(config: Config, section: Config, dim: int, theta: float) -> Rope:
    name = section.text("rope_type", "type") if {"rope_type", "type"} & section.values.keys() else "default"
    if name not in RULES:
        raise section.bad("rope_type" if "rope_type" in section.values else "type", f"allowed: {', '.join(RULES)}")
    if section.number("partial_rotary_factor", 1.0) != 1.0:
        raise section.bad("partial_rotary_factor", "only whole heads (1.0) are rotated")
    if name == "default":
        return Rope(dim, theta)
    longest = config.size("max_position_embeddings", 8192)
    rule: Rule = name  # type: ignore[assignment]
    return Rope(
        dim,
        theta,
        rule,
        factor=section.number("factor"),
        original_context=longest if rule == "dynamic" else section.size("original_max_position_embeddings", longest),
        low_freq_factor=section.number("low_freq_factor", 1.0),
        high_freq_factor=section.number("high_freq_factor", 4.0),
        beta_fast=section.number("beta_fast", 32.0),
        beta_slow=section.number("beta_slow", 1.0),
        attention_factor=_yarn_scale(section) if rule == "yarn" else 1.0,
        truncate=section.flag("truncate", True),
    )


def _yarn_scale(section: Config) -> float:
    """The factor on cosines and sines; DeepSeek's files give it as a quotient of two."""
    given = section.optional_number("attention_factor")
    if given is not None:
        return given
    factor = section.number("factor")
    one, all_dims = section.optional_number("mscale"), section.optional_number("mscale_all_dim")
    if one and all_dims:
        return _mscale(factor, one) / _mscale(factor, all_dims)
    return yarn_attention_factor(factor)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
