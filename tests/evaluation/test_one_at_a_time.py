"""One part at a time: every site once, only that part quantized, shares that add up."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from onnxvitq.core.plan import Layers, QuantPlan, only
from onnxvitq.evaluation.one_at_a_time import SiteGroup, one_at_a_time, site_groups


@dataclass
class Said:
    sqnr_db: float
    agreement: float | None = None


def test_every_site_is_in_one_part(layers: Layers, plan: QuantPlan) -> None:
    parts = site_groups(layers, plan)
    tensors = [tensor for part in parts for tensor in part.tensors]
    assert sorted(tensors) == sorted(plan.decisions)
    assert {(part.block, part.kind) for part in parts} >= {
        (0, "attn.key+query.input"),
        (0, "attn.key.weight"),
        (0, "mlp.fc1.input"),
        (0, "attn.probs"),
    }


def test_the_input_of_several_layers_is_called_by_all_of_them(layers: Layers, plan: QuantPlan) -> None:
    part = next(part for part in site_groups(layers, plan) if "x" in part.tensors)
    assert part == SiteGroup(block=0, kind="attn.key+query.input", tensors=("x",), bits=8)


@pytest.mark.parametrize("order", [("q", "k", "v"), ("k", "v", "q")])
def test_query_key_and_value_come_in_their_usual_order(layers: Layers, plan: QuantPlan, order: Sequence[str]) -> None:
    linears = layers.blockmap.linears
    roles = [f"block3.attn.{name}" for name in order]
    renamed = tuple(replace(linear, role=role) for linear, role in zip(linears, roles, strict=True))
    readers = tuple((linear.name, 0) for linear in linears)
    site = replace(plan.decisions["x"].site, consumers=readers, role=f"{roles[0]}.input")
    changed = replace(plan, decisions={"x": replace(plan.decisions["x"], site=site)})
    (part,) = site_groups(replace(layers, blockmap=replace(layers.blockmap, linears=renamed)), changed)
    assert (part.block, part.kind) == (3, "attn.q+k+v.input")


def test_only_one_part_is_quantized_at_a_time_and_shares_add_up(layers: Layers, plan: QuantPlan) -> None:
    def measure(candidate: QuantPlan) -> Said:
        (kind,) = {decision.site.kind for decision in candidate.decisions.values() if decision.params is not None}
        return Said(30.0 if kind == "weight" else 20.0, 0.5)

    found = one_at_a_time(layers, plan, measure)
    assert sum(one.share for one in found) == pytest.approx(1, abs=1e-4)  # each rounded to five digits
    by_kind = {one.kind: one for one in found}
    assert by_kind["attn.key+query.input"].share == pytest.approx(10 * by_kind["attn.query.weight"].share, abs=1e-4)
    assert (by_kind["mlp.fc1.weight"].sqnr_db, by_kind["mlp.fc1.weight"].agreement) == (30.0, 0.5)


def test_corrections_are_left_out(plan: QuantPlan) -> None:
    """A bias that makes up for an error that is not there would be an error itself."""
    name, array = next(iter(plan.decisions)), np.ones(1, np.float32)
    corrected = replace(plan, biases={"/mlp/fc1/MatMul": array}, weights={"/mlp/fc1/MatMul": array})
    alone = only(corrected, {name})
    assert (alone.biases, alone.weights) == ({}, {})
    assert [key for key, decision in alone.decisions.items() if decision.params is not None] == [name]
