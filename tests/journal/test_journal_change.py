"""What a batch did to a weight: stored small, and given back to the last bit."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from tiny import normal

from lit_edit.delta import Delta
from lit_edit.errors import EditError
from lit_edit.journal.change import apply, encode
from lit_edit.journal.product import Part, product, split


def same(one, other):
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


def thin(rows=40, columns=96, rank=6, size=0.02, seed=0):
    left, right = normal(rows, rank, seed=seed), normal(rank, columns, seed=seed + 1)
    return Delta.low_rank(left * size / rank**0.5, right)


def stored_bytes(stored):
    return sum(value.numel() * value.element_size() for value in stored.values())


def test_the_parts_of_a_factor_are_whole_numbers_close_to_it():
    factor = normal(30, 7) * torch.logspace(-9, 9, 30, dtype=torch.float64)[:, None]
    part = Part.of(factor, 1)
    assert part.high.dtype == torch.int32 and int(part.high.abs().max()) <= 2**30
    back = (part.high.double() + part.low.double() / 256) * torch.exp2(part.exponent.double())[:, None]
    assert float(((back - factor).abs().amax(1) / factor.abs().amax(1)).max()) < 2**-37


@pytest.mark.parametrize("rank", [1, 6, 700])
def test_the_product_is_the_exact_sum_rounded_step_by_step(rank):
    """Against Python's whole numbers, which know no rounding; 700 terms are summed in two portions."""
    delta = thin(5, 9, rank)
    left, right = split(delta)
    found = product(left, right)

    def halves(part, *place):
        whole = [256 * int(high) + int(low) for high, low in zip(part.high[place], part.low[place], strict=True)]
        high = [(number + 2**15) // 2**16 for number in whole]
        assert all(abs(one) <= 2**22 for one in high)
        return high, [number - 2**16 * one for number, one in zip(whole, high, strict=True)]

    for o in range(5):
        for i in range(9):
            total = 0.0
            for at in range(0, rank, 512):
                terms = range(len(range(at, min(at + 512, rank))))
                (a, al), (b, bl) = halves(left, o, slice(at, at + 512)), halves(right, slice(at, at + 512), i)
                total += float(sum(a[k] * b[k] for k in terms))
                total += float(sum(a[k] * bl[k] + al[k] * b[k] for k in terms)) / 2**16
            exact = torch.tensor(total * 2.0 ** (int(left.exponent[o]) + int(right.exponent[i]) + 16), dtype=torch.float64)
            assert float(found[o, i]) == float(exact.float())
    # What is left: one rounding to float32, and what the parts leave out.
    assert torch.allclose(found.double(), delta.dense(), rtol=2**-24, atol=rank * 2**-32)


def test_the_order_of_the_terms_does_not_matter_to_the_product():
    """It would to any other product: float64 sums in another order round differently."""
    left, right = split(thin(64, 200, 300, 1.0))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    mixed = product(
        Part(left.high[:, order], left.low[:, order], left.exponent), Part(right.high[order], right.low[order], right.exponent)
    )
    assert same(product(left, right), mixed)
    plain = left.high.double() / 2**30 * 0.1
    assert not torch.equal(plain @ right.high.double(), plain[:, order] @ right.high[order].double())


def test_another_process_with_other_threads_gives_the_same_bits(tmp_path):
    left, right = split(thin(200, 333, 100))
    save_file({"a": left.high, "al": left.low, "ae": left.exponent, "b": right.high, "bl": right.low, "be": right.exponent},
              tmp_path / "x.safetensors")  # fmt: skip
    code = (
        "import sys, torch, hashlib; from safetensors.torch import load_file; from lit_edit.journal.product import Part, product\n"
        "torch.set_num_threads(int(sys.argv[1])); t = load_file(sys.argv[2])\n"
        "p = product(Part(t['a'], t['al'], t['ae']), Part(t['b'], t['bl'], t['be']))\n"
        "print(hashlib.sha256(p.numpy().tobytes()).hexdigest())"
    )
    found = {
        subprocess.run([sys.executable, "-c", code, str(threads), tmp_path / "x.safetensors"], capture_output=True, text=True,
                       check=True).stdout
        for threads in (1, 2)
    }  # fmt: skip
    assert len(found) == 1 and len(found.pop()) == 65


@pytest.mark.parametrize("size", [0.02, 5.0])
def test_a_thin_change_comes_back_bit_for_bit_from_its_factors(size):
    before, delta = normal(40, 96).float(), thin(size=size)
    after = before + delta.dense().float()
    stored = encode(before, after, delta)
    assert "left" in stored and same(apply(before, stored), after)
    assert stored["patch_at"].numel() <= before.numel() * 0.001


@pytest.mark.parametrize("size", [1e-3, 0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("rank", [4, 50])
def test_the_patch_is_small_however_large_the_change(size, rank):
    before, delta = normal(256, 512, seed=5).float(), thin(256, 512, rank, size)
    stored = encode(before, before + delta.dense().float(), delta)
    assert stored["patch_at"].numel() <= before.numel() * 0.001


def test_the_size_is_five_bytes_a_number_of_the_factors():
    """A weight a twelfth of Llama-3's in each dimension, a change of one per cent, and the rank of a batch of 20."""
    before, delta = normal(341, 1194, seed=5).float(), thin(341, 1194, 20, 0.01)
    stored = encode(before, before + delta.dense().float(), delta)
    factors = 5 * 20 * (341 + 1194)
    assert factors < stored_bytes(stored) < factors * 1.03


@pytest.mark.parametrize("scale", [0.37, 1e-3])
def test_a_change_that_was_scaled_on_its_way_stays_thin(scale):
    """Clipped gradients, or a learning rate."""
    before, delta = normal(200, 300).float(), thin(200, 300)
    after = before.add(-delta.dense().float(), alpha=-scale)
    stored = encode(before, after, delta)
    assert "left" in stored and stored_bytes(stored) < after.numel() * 2
    assert same(apply(before, stored), after)


def test_what_the_factors_do_not_give_is_patched_or_dense():
    before, delta = normal(200, 300).float(), thin(200, 300)
    after = before + delta.dense().float()
    after[3, 4], after[0, 0] = 7.0, -0.0
    stored = encode(before, after, delta)
    assert "left" in stored and same(apply(before, stored), after)
    other = before + normal(200, 300, seed=9).float()
    stored = encode(before, other, delta)
    assert set(stored) == {"weight"} and same(apply(before, stored), other)
    assert set(encode(before, other, None)) == {"weight"}
    assert encode(before, before.clone(), delta) == {} and apply(before, {}) is before


def test_several_writes_to_one_weight_come_back_too():
    """Their float32 sum is not the product of the joined factors; the patch sees to it."""
    before, parts = normal(200, 300).float(), [thin(200, 300, 2, seed=s) for s in (1, 3, 5)]
    change = sum((part.dense().float() for part in parts), torch.zeros(200, 300))
    joined = Delta.low_rank(torch.cat([p.factors[0] for p in parts], 1), torch.cat([p.factors[1] for p in parts]))
    stored = encode(before, before + change, joined)
    assert "left" in stored and same(apply(before, stored), before + change)


@pytest.mark.parametrize("spoil", [float("nan"), float("inf"), 1e300])
def test_numbers_that_no_part_can_hold_do_not_break_the_promise(spoil):
    before, delta = normal(40, 96).float(), thin()
    after = before + delta.dense().float()
    left, right = (factor.clone() for factor in delta.factors)
    left[3, 2] = spoil
    stored = encode(before, after, Delta.low_rank(left, right))
    assert same(apply(before, stored), after)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("left", torch.zeros(40, 5)),
        ("left", torch.zeros(40, 6, dtype=torch.float64)),
        ("left", torch.zeros(6)),
        ("right", torch.zeros(6, 95)),
        ("right_low", torch.zeros(6, 96)),
        ("left_exponent", torch.full((40,), 2000, dtype=torch.int16)),
        ("right_exponent", torch.zeros(40, dtype=torch.int16)),
        ("patch_at", torch.tensor([40 * 96], dtype=torch.int32)),
        ("patch_at", torch.tensor([-1], dtype=torch.int32)),
        ("patch_weight", torch.zeros(3)),
        ("weight", torch.zeros(40, 96)),
    ],
)
def test_tensors_of_another_form_are_refused(name, value):
    before, delta = normal(40, 96).float(), thin()
    stored = {**encode(before, before + delta.dense().float(), delta), "patch_at": torch.tensor([0], dtype=torch.int32),
              "patch_weight": torch.zeros(1)}  # fmt: skip
    apply(before, stored)
    with pytest.raises(EditError):
        apply(before, {**stored, name: value})
    with pytest.raises(EditError):
        apply(before, {"weight": torch.zeros(96, 40)})
