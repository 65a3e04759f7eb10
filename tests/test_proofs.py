"Rounding, and the three proofs: exact arithmetic as the oracle, libraries that lie, claims that are too small."
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_constants import convolutions

from liresnet_nb import bounds, proofs
from liresnet_nb.bounds import NOTHING, Bound, check_weights, matrix_bound, pair_bound, product, row_distances, settle, symbol_bound
from liresnet_nb.core import InputError
from liresnet_nb.layers import Conv, Dense, roundings, summed
from liresnet_nb.lipschitz import operator_matrix
from liresnet_nb.proofs import Gram, cholesky_bound, operator_bound, top_value
from liresnet_nb.rounding import UNIT, gamma, norm_up, power_of_two, product_error, sqrt_up, up


def normal(*shape, seed=0): return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.fractions(min_value=0, max_value=10**40))
def test_single_numbers_round_up_by_one_step_at_most(x):
    if 0 < x < 2**-1022: return
    assert up(x) >= x and (up(x) == 0 or math.nextafter(up(x), 0) < x or Fraction(up(x)) == x)
    assert sqrt_up(x)**2 >= x and float(sqrt_up(x)) == pytest.approx(math.sqrt(x), rel=1e-15)


def test_numbers_out_of_range_are_refused():
    for bad in (Fraction(2)**1024, Fraction(1, 2**1023), Fraction(1, 2**1080)):
        with pytest.raises(InputError, match="rescale the layer"): up(bad)
    assert up(0) == 0 and up(Fraction(1, 2**1022)) == 2.**-1022
    with pytest.raises(InputError, match="too long"): gamma(2**23, torch.float32)


@given(st.integers(1, 50), st.integers(-1060, 1000), st.integers(0, 2**31))
def test_norms_are_never_too_small(n, exponent, seed):
    x = torch.ldexp(normal(n, seed=seed), torch.tensor(exponent))
    exact = sum(Fraction(v)**2 for v in x.tolist())
    assert exact <= norm_up(x)**2 <= exact*(1+Fraction(1, 10**12))
    scale = power_of_two(x)
    assert math.frexp(scale)[0] == .5 and (not x.any() or .5 <= x.abs().max().item()/scale < 2.0001)


@given(st.integers(1, 30), st.integers(0, 2**31))
def test_matrix_products_are_within_gamma(n, seed):
    for dtype in (torch.float32, torch.float64):
        A, B = normal(3, n, seed=seed).to(dtype), normal(n, 3, seed=seed+1).to(dtype)
        exact = [[sum(Fraction(a)*Fraction(b) for a, b in zip(row, col)) for col in B.T.tolist()] for row in A.tolist()]
        wrong = sum((Fraction(c)-e)**2 for cs, es in zip((A@B).tolist(), exact) for c, e in zip(cs, es))
        assert wrong <= product_error(n, norm_up(A.double()), norm_up(B.double()), dtype=dtype)**2


@given(st.integers(1, 300), st.integers(0, 2**31))
def test_chunked_inner_products_are_within_their_gamma(n, seed):
    a, b = normal(1, n, seed=seed).float(), normal(n, 1, seed=seed+1).float()
    exact = sum(Fraction(x)*Fraction(y) for x, y in zip(a[0].tolist(), b[:, 0].tolist()))
    size = sum(abs(Fraction(x)*Fraction(y)) for x, y in zip(a[0].tolist(), b[:, 0].tolist()))
    assert abs(Fraction(summed(a, b).item())-exact) <= gamma(roundings(n), torch.float32)*size
    assert roundings(n) <= n+2 and (n <= 128 or roundings(n) < n)


@given(st.integers(-300, 300), st.integers(1, 12))
def test_products_and_sums_of_bounds_are_exact_upward(exponent, n):
    values = [abs(v)+.1 for v in normal(n, seed=n).tolist()]
    bounds = [Bound(v*10.**((-1)**k*exponent) or 1., "x") for k, v in enumerate(values) if 1e-300 < v*10.**((-1)**k*exponent) < 1e300]
    if not bounds: return
    exact = math.prod((Fraction(b.value) for b in bounds), start=Fraction(1))
    if not Fraction(1, 2**1022) <= exact < 2**1023: return
    assert exact <= product(bounds).value <= exact*(1+Fraction(1, 2**52))
    assert Fraction((bounds[0]+bounds[-1]).value) >= Fraction(bounds[0].value)+Fraction(bounds[-1].value)


@given(st.integers(2, 6), st.integers(1, 20), st.integers(-200, 200), st.integers(0, 2**31))
def test_distances_of_rows_are_never_too_small(m, D, exponent, seed):
    rows = torch.ldexp(normal(m, D, seed=seed), torch.tensor(exponent))
    rows[-1] = rows[0]
    distance = row_distances(rows)
    for i in range(m):
        for j in range(m):
            exact = sum((Fraction(a)-Fraction(b))**2 for a, b in zip(rows[i].tolist(), rows[j].tolist()))
            assert Fraction(distance[i, j].item())**2 >= exact and Fraction(distance[i, j].item())**2 <= exact*(1+Fraction(1, 10**12))
    assert distance[0, -1] == 0
    if abs(exponent) < 100: assert (pair_bound(rows, [("x", Bound(3., "x"))], (1, 1, D)).matrix >= 3*distance*(1-1e-15)).all()


@pytest.mark.property
@given(convolutions())
def test_every_proof_proves_its_own_number_and_none_below_the_truth(case):
    kernel, shape, stride, padding, _ = case
    if not kernel.any(): return
    truth = torch.linalg.matrix_norm(operator_matrix(kernel, shape, stride, padding), 2).item()
    for proof in ("explicit", "symbol", "tight"):
        try: found = operator_bound(kernel, shape, stride, padding, proof)
        except InputError as e:
            assert truth == 0 and "no input" in str(e)       # weights that no pixel meets
            continue
        assert found.value >= truth and operator_bound(kernel, shape, stride, padding, proof, claim=found.value).value == found.value
        if truth:
            with pytest.raises(InputError, match="is not proved"): operator_bound(kernel, shape, stride, padding, proof, claim=truth*(1-1e-6))


@pytest.mark.parametrize("taps, stride", [(3, 1), (5, 2), (4, 1), (2, 1), (7, 4)])
def test_the_symbol_lies_above_a_much_finer_grid_and_not_far(taps, stride):
    "Two ways to the supremum: diamonds with their factor, and a plain grid of 100 × 100."
    for seed in range(3):
        kernel = normal(8, 4, taps, taps, seed=seed)
        phases = bounds.polyphase(kernel, stride)
        fine = torch.linalg.matrix_norm(torch.fft.fft2(phases, s=(100, 100)).permute(2, 3, 0, 1), 2).max().item()
        for grid, refine in ((17, 2), (9, 1), (20, 0)):
            assert fine <= symbol_bound(kernel, stride, max(grid, taps), refine).value
        assert symbol_bound(kernel, stride).value <= fine*(1.005 if taps < 5 else 1.01)


@pytest.mark.parametrize("shape, in_shape, stride, padding", [((9, 7, 3, 3), (7, 9, 11), 1, 1), ((4, 9, 3, 3), (9, 8, 8), 2, 1), ((6, 3, 5, 5), (3, 16, 16), 2, 2), ((3, 8, 2, 2), (8, 7, 5), 1, 0), ((40, 70), (70,), 1, 0)])
@pytest.mark.parametrize("whole", [0, 4096])
def test_the_tight_proof_comes_within_1e_5_whatever_the_blocks(shape, in_shape, stride, padding, whole):
    kernel = normal(*shape)
    truth = torch.linalg.matrix_norm(operator_matrix(kernel, in_shape, stride, padding), 2).item()
    found = cholesky_bound(kernel, in_shape, stride, padding, whole=whole)
    assert truth <= found.value <= truth*(1+1e-5) and top_value(kernel, in_shape, stride, padding) == pytest.approx(truth, rel=1e-7)
    for e in (1e-3, 1e-6):
        with pytest.raises(InputError, match="found no factor"): cholesky_bound(kernel, in_shape, stride, padding, claim=truth*(1-e), whole=whole)


@pytest.mark.parametrize("edge", [1, 150, 1024])
@pytest.mark.parametrize("shape, n, stride, padding", [((6, 4, 5, 5), 20, 1, 2), ((6, 4, 5, 5), 26, 1, 1), ((3, 4, 3, 3), 15, 2, 1), ((9, 2, 4, 4), 14, 3, 2), ((2, 5, 3, 3), 12, 1, 0)])
def test_the_band_holds_all_that_is_not_zero(monkeypatch, edge, shape, n, stride, padding):
    monkeypatch.setattr(proofs, "EDGE", edge)
    kernel = normal(*shape)
    gram = Gram(kernel, (shape[1], n, n), stride, padding, whole=0)
    assert gram.group == max(1, min(edge//gram.n, edge)) and gram.blocks == -(-gram.rows//gram.group)
    A = operator_matrix(kernel, (shape[1], n, n), stride, padding)
    B = A.T.reshape(-1, shape[0], gram.rows, gram.n//shape[0]) if gram.adjoint else A.reshape(-1, shape[1], n, n)
    exact, size = B.transpose(1, 2).flatten(1), gram.group*gram.n
    exact = exact.T@exact
    for i in range(gram.blocks):
        for j in range(gram.blocks):
            part = exact[i*size:(i+1)*size, j*size:(j+1)*size]
            if abs(i-j) > gram.band: assert not part.any()
            else:
                block, squared = gram.block(i, j)
                assert torch.allclose(block, part, rtol=1e-12, atol=1e-12) and norm_up(block-part)**2 <= 4*squared


def test_an_error_in_forming_the_blocks_is_paid_for(monkeypatch):
    kernel, honest = normal(6, 5, 3, 3), Gram.block
    truth = torch.linalg.matrix_norm(operator_matrix(kernel, (5, 8, 8), 1, 1), 2).item()
    assert cholesky_bound(kernel, (5, 8, 8), 1, 1, claim=1.001*truth)
    monkeypatch.setattr(Gram, "block", lambda self, i, j: (honest(self, i, j)[0], Fraction(1, 10**4)))
    with pytest.raises(InputError, match="found no factor"): cholesky_bound(kernel, (5, 8, 8), 1, 1, claim=1.001*truth)


# Libraries that lie: a bound may get loose or fail, never wrong

def test_a_wrong_svd_makes_no_wrong_bound(monkeypatch):
    A, honest = normal(30, 20), torch.linalg.svd
    truth = torch.linalg.matrix_norm(A, 2).item()
    def swapped(U, s, V): return U, s.flip(0), V
    lies = [lambda U, s, V: (1.1*U, s/1.1, V), lambda U, s, V: (U, s/1.1, 1.1*V), lambda U, s, V: (U, .9*s, V), lambda U, s, V: (.9*U, s, V), lambda U, s, V: (U, s, V.roll(1, 0)), swapped,
            lambda U, s, V: (-U, -s, V), lambda U, s, V: (-.9*U, -s, V), lambda U, s, V: (U+.01, s, V), lambda U, s, V: (0*U, 0*s, 0*V), lambda U, s, V: (U, s-1e-6, V)]
    for lie in lies:
        monkeypatch.setattr(torch.linalg, "svd", lambda *a, lie=lie, **k: lie(*honest(*a, **k)))
        assert matrix_bound(A).value >= truth


def test_a_wrong_factor_proves_nothing(monkeypatch):
    kernel, honest = normal(6, 5, 3, 3), torch.linalg.cholesky_ex
    truth = torch.linalg.matrix_norm(operator_matrix(kernel, (5, 8, 8), 1, 1), 2).item()
    top, sup = top_value(kernel, (5, 8, 8), 1, 1), symbol_bound(kernel).value
    lies = [lambda L, info: (1.01*L, info), lambda L, info: (L+1e-3, info), lambda L, info: (0*L, 0*info), lambda L, info: (L*math.nan, 0*info),
            lambda L, info: (torch.eye(L.shape[-1]).to(L).expand_as(L).contiguous(), 0*info)]
    for lie in lies:
        monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda *a, lie=lie, **k: lie(*honest(*a, **k)))
        for whole in (0, 4096):
            for claim in (.9*truth, truth*(1-1e-6)):
                with pytest.raises(InputError, match="found no factor|nothing is proved"): cholesky_bound(kernel, (5, 8, 8), 1, 1, claim=claim, whole=whole)
        with pytest.raises(InputError, match="is not proved"): symbol_bound(kernel, claim=.99*sup)
    monkeypatch.undo()
    assert cholesky_bound(kernel, (5, 8, 8), 1, 1, claim=top*(1+1e-5)).value == top*(1+1e-5)


def test_a_wrong_solve_proves_nothing(monkeypatch):
    kernel, honest = normal(6, 5, 3, 3), torch.linalg.solve_triangular
    truth = torch.linalg.matrix_norm(operator_matrix(kernel, (5, 8, 8), 1, 1), 2).item()
    for lie in (lambda X: 0*X, lambda X: .99*X, lambda X: X+1e-4):
        monkeypatch.setattr(torch.linalg, "solve_triangular", lambda *a, lie=lie, **k: lie(honest(*a, **k)))
        monkeypatch.setattr(proofs, "Gram", lambda *a: small_blocks(*a))
        with pytest.raises(InputError, match="found no factor"): cholesky_bound(kernel, (5, 8, 8), 1, 1, claim=.99*truth, whole=0)


def small_blocks(*given):
    "A band of single rows, so that there is something to solve."
    gram = Gram(*given)
    gram.group, gram.blocks, gram.band = 1, gram.rows, 2
    return gram


def test_an_estimate_that_lies_does_not_move_the_bound_below_the_truth(monkeypatch):
    kernel = normal(6, 5, 3, 3)
    truth = torch.linalg.matrix_norm(operator_matrix(kernel, (5, 8, 8), 1, 1), 2).item()
    monkeypatch.setattr(proofs, "top_value", lambda *a: .95*truth)
    assert cholesky_bound(kernel, (5, 8, 8), 1, 1).value >= truth
    monkeypatch.setattr(proofs, "top_value", lambda *a: .1*truth)
    with pytest.raises(InputError, match="use proof='symbol'"): cholesky_bound(kernel, (5, 8, 8), 1, 1)
    below = torch.linalg.matrix_norm(torch.fft.fft2(kernel, s=(64, 64)).permute(2, 3, 0, 1), 2).max().item()
    monkeypatch.setattr(bounds, "_tops", lambda kernel, cells, grid: torch.full((len(cells),), 1e-3, dtype=torch.float64))
    with pytest.raises(InputError, match="lost to its own rounding"): symbol_bound(kernel)
    assert below > 1e-3


# What operators are, and what is refused

def test_what_is_chosen_for_which_layer():
    def chosen(layer, proof="auto"): return layer.prove(proof).method
    assert chosen(Conv((3, 8, 8), 4, 3, padding=1)) == "explicit" and chosen(Conv((8, 16, 16), 8, 3, padding=1)) == "tight"
    assert chosen(Conv((20, 16, 16), 20, 3, padding=1)) == "symbol" and chosen(Conv((20, 16, 16), 20, 3, padding=1), "tight") == "tight"
    neck = Conv((20, 16, 16), 40, 4, 4)
    assert chosen(neck) == "explicit" == chosen(neck, "tight") == chosen(neck, "symbol") and "40×320" in neck.prove().proof
    assert chosen(Dense(1200, 1100)) == "tight" and chosen(Dense(1200, 100)) == "explicit"
    with pytest.raises(InputError, match="did you mean 'symbol'"): Dense(4, 4).prove("symbols")


def test_bounds_that_were_found_are_kept_and_claims_are_proved_each_time(monkeypatch):
    layer, calls = Conv((3, 8, 8), 4, 3, padding=1), []
    layer.weight.data *= 1.2345
    honest = proofs._prove
    monkeypatch.setattr(proofs, "_prove", lambda *a: calls.append(a[-2]) or honest(*a))
    first = layer.prove()
    assert layer.prove() is first and calls == [None]
    layer.prove(claim=first.value)
    layer.prove(claim=first.value)
    assert calls == [None, first.value, first.value]
    layer.weight.data[0, 0, 0, 0] += 1e-6
    assert layer.prove() is not first and len(calls) == 4
    other = Conv((3, 8, 9), 4, 3, padding=1)
    other.weight.data = layer.weight.data
    assert other.prove() is not layer.prove() and len(calls) == 5


def test_convolutions_of_any_width_and_kernels_that_no_pixel_meets():
    kernel = normal(2, 2, 19, 19)
    assert symbol_bound(kernel).value >= top_value(kernel, (2, 40, 40), 1, 9)
    kernel = torch.zeros(1, 1, 67, 67, dtype=torch.float64)
    kernel[0, 0, 0, 0] = 1.
    with pytest.raises(InputError, match="no input of shape .* reaches the weights"): cholesky_bound(kernel, (1, 33, 33), 1, 33)


def test_claims_that_are_no_constants():
    for claim in (-10., math.nan, math.inf, True, "5", None.__class__, 1e308*10):
        for proof in ("explicit", "symbol", "tight"):
            with pytest.raises(InputError, match="is claimed to be"): operator_bound(normal(3, 2, 3, 3), (2, 8, 8), 1, 1, proof, claim=claim)
    for proof in ("explicit", "symbol", "tight"): assert operator_bound(normal(3, 2, 3, 3), (2, 8, 8), 1, 1, proof, claim=1e300).value == 1e300


def test_weights_that_are_none_and_claims_of_zero():
    for value in (math.nan, math.inf):
        with pytest.raises(InputError, match="NaN or infinity"): check_weights(torch.tensor([1., value]))
    with pytest.raises(InputError, match="subnormal"): check_weights(torch.tensor([1., 1e-40]))
    assert check_weights(torch.tensor([0., -1.])).dtype == torch.float64
    for proof in ("explicit", "symbol", "tight"):
        with pytest.raises(InputError, match="is not proved"): operator_bound(normal(3, 2, 3, 3), (2, 8, 8), 1, 1, proof, claim=0.)
        assert operator_bound(torch.zeros(3, 2, 3, 3), (2, 8, 8), 1, 1, proof, claim=0.) == NOTHING
    with pytest.raises(InputError, match="is not proved: x arrives at 2"): settle(Fraction(2), 1.9, "x")
    with pytest.raises(InputError, match="cannot hold a kernel of 5 taps"): symbol_bound(normal(2, 2, 5, 5), 1, 4)
    assert float(UNIT[torch.float64]) == 2.**-53


@pytest.mark.parametrize("scale", [2.**-900, 2.**-300, 2.**300, 2.**900])
@pytest.mark.parametrize("proof", ["explicit", "symbol", "tight"])
def test_a_power_of_two_scales_a_bound_exactly(proof, scale):
    kernel = normal(5, 4, 3, 3)
    assert operator_bound(kernel*scale, (4, 9, 9), 1, 1, proof).value == operator_bound(kernel, (4, 9, 9), 1, 1, proof).value*scale


def test_a_proof_that_would_fill_the_memory_is_refused_before_it_does(monkeypatch):
    "Of a large convolution by name, and of whatever size once less may be held; what nobody asked for by name goes another way."
    monkeypatch.setattr(proofs, "operator_matrix", lambda *a: pytest.fail("made the matrix"))
    monkeypatch.setattr(bounds, "operator_matrix", lambda *a: pytest.fail("made the matrix"), raising=False)
    kernel = normal(64, 128, 3, 3)
    for claim in (None, 1e3):
        with pytest.raises(InputError, match="a matrix 16,384 × 32,768, would hold 30 GiB at once, more than 4: use proof='symbol'"): operator_bound(kernel, (128, 16, 16), 1, 1, "explicit", claim)
        with pytest.raises(InputError, match="tight proof with blocks of 14,336 × 14,336 would hold .* use proof='symbol'"): operator_bound(kernel, (128, 224, 224), 1, 1, "tight", claim)
    with pytest.raises(InputError, match="use proof='tight'"): operator_bound(torch.ones(1, 1).expand(9000, 9000), (9000,), 1, 0, "explicit")
    monkeypatch.undo()
    monkeypatch.setattr(proofs, "HELD", 50_000)
    kernel, wide = normal(1, 8, 3, 3), (8, 8, 8)                                    # a matrix 64 × 512
    assert operator_bound(kernel, wide, 1, 1, claim=100.).method == "tight"         # explicit, were there room
    with pytest.raises(InputError, match="explicit proof, of a matrix 64 × 512, would hold 0 GiB"): operator_bound(kernel, wide, 1, 1, "explicit", claim=100.)
    with pytest.raises(InputError, match="tight proof with blocks of 192 × 192"): operator_bound(normal(4, 3, 3, 3), (3, 8, 8), 1, 1, claim=100.)
