"""Which channels are mapped: where outliers make it worth it, and nowhere else."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fitted_cases import Case, build_case, correlated, seeded_transformer

from onnxvitq.core.plan import ChannelScaling, QuantPlan
from onnxvitq.fit.steps.channel_scaling import choose as reparametrise
from onnxvitq.fit.steps.channel_scaling.choose import (
    WORTH_DB,
    choose_online_scalings,
    choose_scalings,
    scaling_requests,
)
from onnxvitq.fit.steps.channel_scaling.rewrite import apply_scalings
from onnxvitq.graph.writing import to_proto

OUTLIERS = (3, 17)  # channels of a norm or of the values
Changes = Mapping[str, Callable[[np.ndarray], np.ndarray]]


def changed(model: onnx.ModelProto, changes: Changes) -> onnx.ModelProto:
    """The model with some weights made others."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    left = dict(changes)
    for tensor in copy.graph.initializer:
        if tensor.name in left:
            values = left.pop(tensor.name)(onnx.numpy_helper.to_array(tensor))
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values, np.float32), tensor.name))
    assert not left
    return copy


def times_30(axis: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        factor = np.ones(values.shape[axis], np.float32)
        factor[list(OUTLIERS)] = 30
        return np.moveaxis(np.moveaxis(values, axis, -1) * factor, -1, axis)

    return change


def over_30(axis: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        factor = np.ones(values.shape[axis], np.float32)
        factor[list(OUTLIERS)] = 1 / 30
        return np.moveaxis(np.moveaxis(values, axis, -1) * factor, -1, axis)

    return change


# The same function from tensors with outliers: what the channel gains, its readers lose.
NORM_OUTLIERS: Changes = {"b0_norm2_g": times_30(0), "b0_norm2_b": times_30(0), "b0_fc1_W": over_30(0)}
VALUE_OUTLIERS: Changes = {"b0_v_W": times_30(1), "b0_v_b": times_30(0), "b0_proj_W": over_30(0)}
QUERY_OUTLIERS: Changes = {
    "b0_q_W": times_30(1),
    "b0_q_b": times_30(0),
    "b0_k_W": over_30(1),
    "b0_k_b": over_30(0),
}


def case_of(model: onnx.ModelProto, folder: Path, **options: Any) -> Case:
    return build_case(model, correlated(0, 12), folder, bits=8, attention="int8", **options)


def chosen(case: Case) -> dict[tuple[str, str], ChannelScaling]:
    return {(one.kind, one.source): one for one in choose_scalings(case.layers, case.plan, case.stats)}


def output_gain(case: Case, folder: Path, *kinds: str) -> float:
    """What the maps of these kinds gain at the model's output, in dB."""
    maps = [one for one in choose_scalings(case.layers, case.plan, case.stats) if one.kind in kinds]
    after = case_of(to_proto(apply_scalings(case.graph, case.layers.blockmap, maps), {}), folder)
    fresh = correlated(500, 12)
    return after.sqnr(after.plan, fresh) - case.sqnr(case.plan, fresh)


@pytest.mark.parametrize(
    ("changes", "kind", "source"),
    [(NORM_OUTLIERS, "norm", "b0_norm2"), (VALUE_OUTLIERS, "value", "b0_v"), (QUERY_OUTLIERS, "scores", "b0_q")],
    ids=["norm", "value", "scores"],
)
def test_outlier_channels_are_scaled_down(tmp_path: Path, changes: Changes, kind: str, source: str) -> None:
    case = case_of(changed(seeded_transformer(0), changes), tmp_path)
    one = chosen(case)[kind, source]
    others = np.delete(one.scale, OUTLIERS)
    assert one.scale[list(OUTLIERS)].min() > 2 * np.median(others)
    assert one.gain_db > 5
    assert output_gain(case, tmp_path, kind) > 2  # the rest of the model has errors of its own


def test_with_outliers_everywhere_the_output_gains_ten_decibels(tmp_path: Path) -> None:
    blocks = [{name.replace("b0", f"b{i}"): one for name, one in EVERYWHERE.items()} for i in (0, 1)]
    case = case_of(changed(seeded_transformer(0), {**blocks[0], **blocks[1]}), tmp_path)
    norms, everything = output_gain(case, tmp_path, "norm"), output_gain(case, tmp_path, "norm", "value", "scores")
    assert everything > norms > 3
    assert everything > 10


# The first norm's outliers are taken back by the three linears that read it.
EVERYWHERE: Changes = {
    **NORM_OUTLIERS,
    "b0_norm1_g": times_30(0),
    "b0_norm1_b": times_30(0),
    "b0_q_W": lambda weight: QUERY_OUTLIERS["b0_q_W"](over_30(0)(weight)),
    "b0_q_b": QUERY_OUTLIERS["b0_q_b"],
    "b0_k_W": lambda weight: QUERY_OUTLIERS["b0_k_W"](over_30(0)(weight)),
    "b0_k_b": QUERY_OUTLIERS["b0_k_b"],
    "b0_v_W": lambda weight: VALUE_OUTLIERS["b0_v_W"](over_30(0)(weight)),
    "b0_v_b": VALUE_OUTLIERS["b0_v_b"],
    "b0_proj_W": VALUE_OUTLIERS["b0_proj_W"],
}


def test_a_model_without_outliers_changes_little(tmp_path: Path) -> None:
    case = case_of(seeded_transformer(0), tmp_path)
    for one in chosen(case).values():
        assert one.gain_db >= WORTH_DB
        assert one.gain_db < 6


def test_a_gain_that_is_noise_is_no_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(seeded_transformer(0), tmp_path)
    best = max(one.gain_db for one in chosen(case).values())
    monkeypatch.setattr(reparametrise, "WORTH_DB", best + 0.01)
    assert chosen(case) == {}


def test_each_tensor_is_mapped_once_and_by_its_readers(tmp_path: Path) -> None:
    case = case_of(changed(seeded_transformer(0), {**NORM_OUTLIERS, **VALUE_OUTLIERS}), tmp_path)
    maps = choose_scalings(case.layers, case.plan, case.stats)
    assert len({one.source for one in maps}) == len(maps)
    blockmap = case.layers.blockmap
    outputs = {norm.name: norm.output for norm in blockmap.norms}
    for one in maps:
        if one.kind == "norm":
            assert one.readers == tuple(
                reader.name for reader in blockmap.linears if reader.input == outputs[one.source]
            )
        assert (one.shift.dtype, one.scale.dtype, one.shift.shape) == (
            np.dtype(np.float32),
            np.dtype(np.float32),
            one.scale.shape,
        )
        assert (one.scale > 0).all()


def test_a_norm_that_a_residual_reads_is_not_mapped(tmp_path: Path) -> None:
    model = changed(seeded_transformer(0), NORM_OUTLIERS)
    for node in model.graph.node:  # post-norm: the stream goes on from the norm
        if node.name == "b0_end":
            node.input[0] = "b0_norm2"
    case = case_of(model, tmp_path)
    assert not next(norm.only_linears for norm in case.layers.blockmap.norms if norm.name == "b0_norm2")
    assert ("norm", "b0_norm2") not in chosen(case)
    # A Mul before the linear can do it.
    (one,) = [one for one in choose_online_scalings(case.layers, case.plan, case.stats) if one.source == "b0_norm2"]
    assert (one.kind, one.readers) == ("online", ("b0_fc1",))
    assert not one.shift.any()


def without_bias(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """The linear layer of that name without its bias."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    (add,) = [node for node in copy.graph.node if node.name == f"{name}_out"]
    copy.graph.node.remove(add)
    for node in copy.graph.node:
        for index, tensor in enumerate(node.input):
            if tensor == f"{name}_out":
                node.input[index] = name
    return copy


@pytest.mark.parametrize(
    ("bias", "changes", "key"),
    [
        ("b0_fc1", NORM_OUTLIERS, ("norm", "b0_norm2")),
        ("b0_v", {name: one for name, one in VALUE_OUTLIERS.items() if name != "b0_v_b"}, ("value", "b0_v")),
        ("b0_proj", VALUE_OUTLIERS, ("value", "b0_v")),
        ("b0_k", {name: one for name, one in QUERY_OUTLIERS.items() if name != "b0_k_b"}, ("scores", "b0_q")),
    ],
)
def test_where_a_bias_is_missing_nothing_is_shifted(
    tmp_path: Path, bias: str, changes: Changes, key: tuple[str, str]
) -> None:
    case = case_of(without_bias(changed(seeded_transformer(0), changes), bias), tmp_path)
    assert not case.layers.blockmap.linear(bias).bias
    one = chosen(case)[key]
    assert not one.shift.any()
    assert one.scale.max() > 1.5


def test_a_shift_is_chosen_where_channels_lie_beside_zero(tmp_path: Path) -> None:
    far = np.zeros(32, np.float32)
    far[::2], far[1::2] = 20, -20
    case = case_of(changed(seeded_transformer(0), {"b0_norm2_b": lambda beta: beta + far}), tmp_path)
    one = chosen(case)["norm", "b0_norm2"]
    assert np.abs(one.shift - far).max() < 3  # the middle of each channel
    assert one.gain_db > 10


def test_what_stays_float_is_not_mapped(tmp_path: Path) -> None:
    model = changed(seeded_transformer(0), {**NORM_OUTLIERS, **VALUE_OUTLIERS, **QUERY_OUTLIERS})
    case = case_of(model, tmp_path)
    assert {("norm", "b0_norm2"), ("value", "b0_v"), ("scores", "b0_q")} <= set(chosen(case))
    excluded = build_case(model, correlated(0, 12), tmp_path, bits=8, attention="float", exclude=("b0_fc1", "b0_proj"))
    assert not {("norm", "b0_norm2"), ("value", "b0_v"), ("scores", "b0_q")} & set(chosen(excluded))
    nothing = replace(case, plan=QuantPlan())
    assert chosen(nothing) == {}
    assert choose_online_scalings(nothing.layers, nothing.plan, nothing.stats) == []


def test_rows_and_bounds_of_channels_are_needed_each_once(tmp_path: Path) -> None:
    case = case_of(seeded_transformer(0), tmp_path)
    requests = scaling_requests(case.layers.blockmap)
    assert len(requests) == len(set(requests))
    names = {kind: [request.tensor for request in requests if request.kind == kind] for kind in ("rows", "channels")}
    assert names["rows"] == names["channels"]
    assert len(requests) == 2 * len(names["rows"])
    assert {"b0_norm1", "b0_norm2", "b0_q_out", "b0_k_out", "b0_v_out", "b0_joined"} <= set(names["rows"])


def test_the_same_statistics_give_the_same_maps(tmp_path: Path) -> None:
    case = case_of(changed(seeded_transformer(0), NORM_OUTLIERS), tmp_path)
    first, second = chosen(case), chosen(case)
    assert first.keys() == second.keys()
    for key, one in first.items():
        assert np.array_equal(one.shift, second[key].shift)
        assert np.array_equal(one.scale, second[key].scale)
