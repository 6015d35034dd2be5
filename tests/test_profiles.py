"""Device and engine profiles: published numbers, conversions, fallbacks, and every way a file can be wrong."""

from __future__ import annotations

import copy
import doctest
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import hardware_profiles
from hardware_profiles.check import check
from hardware_profiles.schema import DEVICE, FORMATS, GROUPS, check_device
from hardware_profiles.strict_yaml import MAX_BYTES, read
from sim.analytic import hardware
from sim.analytic.hardware import Device, Engine, Terms

PROMISED = """v100 a100-40gb a100-80gb a100-pcie-40gb a10 a40 l4 l40s h100_sxm h100_pcie h200 b200 gb200 rtx-3090
rtx-4090 mi250x mi300x mi325x mi355x tpu-v3 tpu-v4 tpu-v5e tpu-v5p tpu-v6e ironwood gaudi2 gaudi3 trainium2 inferentia2
m2-ultra m4-max groq phone xeon epyc""".split()

# Dense vendor figures: GB/s, 16-bit TFLOP/s, 8-bit float TFLOP/s (None: the device has none).
PUBLISHED = {
    "v100": (900, 125, None),  # NVIDIA V100 datasheet
    "a100-40gb": (1555, 312, None),  # NVIDIA A100 datasheet
    "a100-80gb": (2039, 312, None),
    "h100": (3350, 989, 1978),  # half of the 1,979 / 3,958 printed "with sparsity"
    "h200": (4800, 989, 1978),
    "l40s": (864, 362.05, 733),  # 1,466 is the sparse figure
    "mi300x": (5300, 1307.4, 2614.9),
    "tpu-v5e": (819, 197, None),  # cloud.google.com/tpu/docs/v5e
    "tpu-v6e": (1638, 918, None),
    "gaudi3": (3670, 1835, 1835),
}


def device(name: str) -> Device:
    return Device.from_profile(hardware_profiles.load(name))


@pytest.fixture
def profile() -> dict[str, Any]:
    return hardware_profiles.load("h100-sxm")


def write(folder: Path, content: str | bytes | dict[str, Any]) -> Path:
    path = folder / "bad.yaml"
    text = yaml.safe_dump(content) if isinstance(content, dict) else content
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as caught:
        hardware_profiles.load(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(path))
    return message


def at(profile: dict[str, Any], path: str) -> Any:
    value: Any = profile
    for key in path.split("."):
        value = value[key]
    return value


@pytest.mark.parametrize("name", hardware_profiles.names())
def test_every_shipped_profile_is_complete_and_named_after_its_file(name: str) -> None:
    profile = hardware_profiles.load(name)
    assert profile["name"] == name
    assert isinstance(device(name), Device)


@pytest.mark.parametrize("name", PROMISED)
def test_every_promised_device_ships(name: str) -> None:
    assert device(name).memory_Bps > 0


def test_no_alias_is_claimed_twice_or_hides_a_name() -> None:
    names = hardware_profiles.names()
    claimed = [alias for name in names for alias in hardware_profiles.load(name)["aliases"]]
    assert len(claimed) == len(set(claimed)) == len(hardware_profiles.aliases())
    assert not set(claimed) & set(names)
    assert all(hardware_profiles.load(alias)["name"] == name for alias, name in hardware_profiles.aliases().items())


@pytest.mark.parametrize("name", hardware_profiles.names())
def test_unverified_fields_exist_and_unknown_numbers_are_admitted(name: str) -> None:
    profile = hardware_profiles.load(name)
    for path in profile["unverified"]:
        at(profile, path)
    for group, path in {"power": "power.tdp_W", "price": "price.usd_per_hour"}.items():
        admitted = path in profile["unverified"] or profile["sources"][group]["from"].startswith("unknown")
        assert at(profile, path) is not None or admitted


@pytest.mark.parametrize("name", PUBLISHED)
def test_dense_peaks_and_bandwidth_equal_the_vendor_figures(name: str) -> None:
    GBps, bf16, fp8 = PUBLISHED[name]
    chip = device(name)
    assert chip.memory_Bps == pytest.approx(GBps * 1e9)
    assert chip.peak_flops("bf16").flops == pytest.approx(bf16 * 1e12)
    assert chip.peaks.get("fp8") == (None if fp8 is None else pytest.approx(fp8 * 1e12))


def test_ridge_point_of_the_h100_is_295_flop_per_byte() -> None:
    assert device("h100").ridge_point("bf16") == pytest.approx(989e12 / 3350e9)
    assert device("h100").ridge_point("bf16") == pytest.approx(295.2, abs=0.05)


def test_units_are_converted_once_from_the_profile_to_si(profile: dict[str, Any]) -> None:
    chip = Device.from_profile(profile)
    assert chip.memory_bytes == 80e9
    assert chip.onchip.capacity_bytes == 50 * 2**20
    assert chip.onchip.near_bytes == 33 * 2**20
    assert chip.link.bandwidth_Bps == 450e9
    assert (chip.tdp_W, chip.usd_per_hour) == (700, 6.88)


def test_unfitted_devices_are_the_textbook_roofline() -> None:
    for name in hardware_profiles.names():
        chip = device(name)
        for group in (chip.matmul, chip.decode_attention, chip.prefill_attention, chip.elementwise):
            assert set(group) == set(FORMATS)
            assert set(group.values()) == {Terms()}


def test_a_fitted_format_overrides_any_and_keeps_interval_and_provenance(profile: dict[str, Any]) -> None:
    any_terms = profile["efficiency"]["matmul"]["any"]
    fitted = {**any_terms, "compute": 0.74, "floor_us": 5.2, "provenance": "fit", "interval": {"compute": [0.7, 0.8]}}
    profile["efficiency"]["matmul"]["bf16"] = fitted
    check_device(profile, "x")
    chip = Device.from_profile(profile)
    assert chip.matmul["bf16"].compute_efficiency == 0.74
    assert chip.matmul["bf16"].floor_s == pytest.approx(5.2e-6)
    assert chip.matmul["bf16"].interval == (("compute", 0.7, 0.8),)
    assert chip.matmul["fp8"] == Terms()


@pytest.mark.parametrize(
    ("name", "wanted", "used", "flops"),
    [
        ("v100", "bf16", "fp16", 125e12),
        ("a100", "fp8", "bf16", 312e12),
        ("a100", "int4", "int4", 1248e12),
        ("h100", "int4", "bf16", 989e12),
        ("h100", "mxfp4", "bf16", 989e12),
        ("b200", "mxfp4", "fp4", 9000e12),
        ("b200", "nf4", "bf16", 2250e12),
        ("l4", "tf32", "fp32", 30.3e12),
        ("tpu-v5e", "fp32", "bf16", 197e12 / 6),
        ("snapdragon", "fp16", "int8", 45e12 / 2),
        ("gaudi3", "fp16", "bf16", 1835e12),
    ],
)
def test_a_format_without_units_falls_back_and_says_so(name: str, wanted: str, used: str, flops: float) -> None:
    peak = device(name).peak_flops(wanted)
    assert peak.used_format == used
    assert peak.flops == pytest.approx(flops)
    own = used == hardware.SAME_RATE.get(wanted, wanted)
    assert peak.note == "" if own else peak.note.count(".") == 1 and wanted in peak.note


def test_int8_is_never_inferred_from_fp8() -> None:
    assert device("b300").peak_flops("int8").flops == pytest.approx(153.5e12)
    assert device("b300").peak_flops("fp8").flops == pytest.approx(4500e12)


def test_every_device_answers_for_every_format() -> None:
    for name in hardware_profiles.names():
        chip = device(name)
        for wanted in (*hardware.FORMATS, *hardware.SAME_RATE, *hardware.STORAGE_ONLY):
            assert chip.peak_flops(wanted).flops > 0
        assert chip.vector_flops().flops > 0


def test_an_unknown_format_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match="no number format 'fp7'; allowed: fp32"):
        device("h100").peak_flops("fp7")


def test_groq_has_its_sram_as_memory_and_nothing_on_top() -> None:
    chip = device("groq")
    assert (chip.memory_type, chip.memory_bytes, chip.memory_Bps) == ("SRAM only", 0.23e9, 80e12)
    assert chip.onchip.capacity_bytes == 0 and chip.onchip.near_bytes is None


def test_unknown_power_and_price_stay_unknown() -> None:
    chip = device("tpu-v6e")
    assert chip.tdp_W is None and chip.energy is None
    assert device("gb200").usd_per_hour is None


@pytest.mark.parametrize("name", ["h100", "a100", "l40s", "mi300x", "xeon", "phone"])
def test_default_energy_draws_the_tdp_with_compute_and_memory_both_saturated(name: str) -> None:
    chip = device(name)
    assert chip.energy is not None and chip.tdp_W is not None
    used = chip.peak_flops("bf16").used_format
    watts = chip.energy.idle_W + chip.energy.memory_byte_J * chip.memory_Bps
    watts += chip.energy.joules_per_flop(used) * chip.peaks[used]
    assert watts == pytest.approx(chip.tdp_W, rel=0.01)


def test_a_capped_card_has_the_chip_energy_of_its_full_power_sibling() -> None:
    card, full = device("a100-pcie-80gb").energy, device("a100-sxm-80gb").energy
    assert card is not None and full is not None
    assert card.flop_J == full.flop_J and card.idle_W < full.idle_W


def test_an_unlisted_format_costs_energy_by_its_width() -> None:
    energy = device("tpu-v4").energy
    assert energy is not None and "fp32" not in energy.flop_J
    assert energy.joules_per_flop("fp32") == pytest.approx(2 * energy.flop_J["bf16"])


def test_devices_are_values_that_hash_and_pickle() -> None:
    chip = device("h100")
    assert pickle.loads(pickle.dumps(chip)) == chip == device("H100_SXM")
    assert hash(chip) == hash(device("h100"))


def test_loaded_profiles_are_fresh_copies() -> None:
    hardware_profiles.load("h100")["memory"]["bandwidth_GBps"] = 1
    assert hardware_profiles.load("h100")["memory"]["bandwidth_GBps"] == 3350


def test_the_ideal_engine_costs_nothing() -> None:
    engine = Engine.from_profile(hardware_profiles.engine("ideal"))
    times = (engine.step_s, engine.layer_s, engine.sequence_s, engine.request_s, engine.cached_token_s)
    assert times == (0, 0, 0, 0, 0)
    assert (engine.plan_ahead, engine.scheduler, engine.token_budget) == (0, None, None)


def test_a_misspelt_name_gets_a_hint() -> None:
    with pytest.raises(ValueError, match="no device profile 'h10'; did you mean 'h100'"):
        hardware_profiles.load("h10")
    with pytest.raises(ValueError, match="no engine profile 'ideel'; did you mean 'ideal'"):
        hardware_profiles.engine("ideel")


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("memory.bandwidth_GBps", -1, "memory.bandwidth_GBps is -1, allowed: a number above 1e-06"),
        ("memory.bandwidth_GBps", 5e-324, "allowed: a number above 1e-06"),
        ("memory.bandwidth_GBps", math.nan, "memory.bandwidth_GBps is nan"),
        ("memory.bandwidth_GBps", math.inf, "memory.bandwidth_GBps is inf"),
        ("memory.bandwidth_GBps", True, "memory.bandwidth_GBps is True"),
        ("memory.bandwidth_GBps", "3350", "memory.bandwidth_GBps is '3350'"),
        ("memory.bandwidth_GBps", None, "memory.bandwidth_GBps is None"),
        ("memory.capacity_GB", 10**400, "memory.capacity_GB is a huge number"),
        (
            "efficiency.matmul.any.compute",
            1.2,
            "efficiency.matmul.any.compute is 1.2, allowed: a number above 0.0001 up to 1",
        ),
        ("efficiency.matmul.any.overlap_p", 0.5, "allowed: a number from 1"),
        ("kind", "toaster", "kind is 'toaster', allowed: one of gpu, tpu"),
        ("year", 2022.5, "year is 2022.5, allowed: a whole number"),
        ("power.idle_W", 900, "power.idle_W is 900, allowed: below tdp_W (700)"),
        ("price.date", 2026, "allowed: text (quote dates) or null"),
        ("aliases", "h100", "aliases is 'h100', allowed: a list"),
        ("onchip", [], "onchip is [], allowed: a mapping"),
        ("link.latency_us", -1e-9, "link.latency_us"),
        ("sources.price.grade", "D", "allowed: one of A, B, C or null"),
    ],
)
def test_a_bad_value_is_named_with_file_key_and_what_is_allowed(
    tmp_path: Path, profile: dict[str, Any], path: str, value: object, words: str
) -> None:
    group, _, key = path.rpartition(".")
    (at(profile, group) if group else profile)[key] = value
    assert words in refused(write(tmp_path, profile))


def test_unknown_and_missing_keys_are_named(tmp_path: Path, profile: dict[str, Any]) -> None:
    wrong = copy.deepcopy(profile)
    wrong["memory"]["bandwith_GBps"] = wrong["memory"].pop("bandwidth_GBps")
    assert "memory.bandwith_GBps is no known key; did you mean 'bandwidth_GBps'?" in refused(write(tmp_path, wrong))
    del profile["price"]["date"]
    assert "price.date is missing" in refused(write(tmp_path, profile))


def test_a_number_outside_its_own_interval_is_refused(tmp_path: Path, profile: dict[str, Any]) -> None:
    profile["efficiency"]["matmul"]["any"]["interval"] = {"compute": [0.5, 0.9]}
    assert "outside its own interval" in refused(write(tmp_path, profile))


def test_a_device_without_any_rate_is_refused(tmp_path: Path, profile: dict[str, Any]) -> None:
    profile["peak_TFLOPs"] = dict.fromkeys(FORMATS)
    assert "peak_TFLOPs lists no rate" in refused(write(tmp_path, profile))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: 1\nb: {c: 1, c: 2}\n", "line 2: key 'c' is given twice"),
        ("a: &x [1]\nb: *x\n", "anchors and aliases are not allowed"),
        ("a: !!python/object/apply:os.getcwd []\n", "tags are not allowed"),
        ("- 1\n- 2\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("a: [1\n", "not valid YAML"),
        ("? [1, 2]\n: 3\n", "a key must be a plain word"),
        ("a: " + "[" * 5000, "nested deeper than"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        (b"a: \xff\xfe", "utf-8"),
        ("a: " + "9" * 5000, "digits"),
        ("a: 2026-99-99", "month must be in"),
        ("#" * (MAX_BYTES + 1), "larger than"),
    ],
)
def test_a_hostile_file_is_refused_in_one_line(tmp_path: Path, content: str | bytes, words: str) -> None:
    assert words in refused(write(tmp_path, content))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "nowhere.yaml")


@given(st.binary(max_size=200) | st.text("abc:-{}[]&*!? \n0'\"", max_size=60))
def test_any_bytes_give_a_mapping_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: str | bytes) -> None:
    path = write(tmp_path_factory.mktemp("fuzz"), content)
    try:
        assert isinstance(read(path, path.name), dict)
    except ValueError as error:
        assert "\n" not in str(error) and str(error).startswith(path.name)


LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
)


@given(st.data())
def test_any_replaced_value_is_accepted_or_refused_by_its_path(data: st.DataObject) -> None:
    """A profile with one value swapped either builds a device with sane numbers or is refused naming that key."""
    profile = hardware_profiles.load("h100")
    path, table = "", profile
    while True:
        key = data.draw(st.sampled_from(sorted(table)))
        path = f"{path}.{key}" if path else key
        if not isinstance(table[key], dict):
            break
        table = table[key]
    table[key] = data.draw(LEAVES)
    try:
        check_device(profile, "f.yaml")
    except ValueError as error:
        assert str(error).startswith("f.yaml: ") and path.split(".")[0] in str(error)
        return
    chip = Device.from_profile(profile)
    assert 0 < chip.ridge_point("bf16") < math.inf


def test_the_example_in_the_docstring_runs() -> None:
    assert doctest.testmod(hardware_profiles) == doctest.TestResults(failed=0, attempted=1)


def test_the_schema_names_every_format_and_group() -> None:
    efficiency, peaks = DEVICE.required["efficiency"], DEVICE.required["peak_TFLOPs"]
    assert tuple(hardware.FORMATS) == FORMATS
    assert set(efficiency.required) == {"provenance", *GROUPS}  # type: ignore[union-attr]
    check(dict.fromkeys(FORMATS, 1.0), peaks, "x ")
