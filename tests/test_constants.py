"Constants against a second implementation, and the inequalities that hold for every layer."
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from liresnet_nb.bounds import NOTHING, Bound, PairBound, pair_bound, product, symbol_bound
from liresnet_nb.core import InputError, generator
from liresnet_nb.layers import Centre, Conv, Dense, Flatten, Head, Householder, LinearOperator, LinearResidual, LipschitzLayer, MinMax, NormalizedHead, pair_distances
from liresnet_nb.lipschitz import apply_adjoint, apply_operator, krylov_step, operator_matrix, power_estimate, power_residual, power_step
from liresnet_nb.model import (ACTIVATIONS, BLOCKS, HEADS, ConvNet, GloroConvNet, GloroNet, LiResNet, ModelConfig, ResNet, build_model, n_parameters,
                               named_net)
from liresnet_nb.proofs import cholesky_bound, operator_bound


def matrix_by_hand(kernel, in_shape, stride, padding):
    "The operator's matrix entry by entry, from the definition of a convolution."
    O, I, k, _ = kernel.shape
    _, H, W = in_shape
    oh, ow = ((n+2*padding-k)//stride+1 for n in (H, W))
    A = torch.zeros(O, oh, ow, I, H, W, dtype=kernel.dtype)
    for y in range(oh):
        for x in range(ow):
            for a in range(k):
                for b in range(k):
                    r, c = y*stride+a-padding, x*stride+b-padding
                    if 0 <= r < H and 0 <= c < W: A[:, y, x, :, r, c] += kernel[:, :, a, b]
    return A.reshape(O*oh*ow, I*H*W)


@st.composite
def convolutions(draw):
    k = draw(st.integers(1, 5))
    stride, padding = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    low = max(1, k-2*padding)
    H, W = (draw(st.integers(low, low+5)) for _ in range(2))
    O, I, seed = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(0, 2**31))
    g = torch.Generator().manual_seed(seed)
    kernel = torch.randn(O, I, k, k, generator=g, dtype=torch.float64)*10.**draw(st.integers(-6, 6))
    if draw(st.booleans()): kernel *= torch.rand(kernel.shape, generator=g) < 0.3      # sparse: degenerate spectra
    return kernel, (I, H, W), stride, padding, g


def draw_whole(g):
    "One block, or a band of blocks of one image row each."
    return [0, 4096][torch.randint(2, (), generator=g).item()]


@pytest.mark.property
@given(convolutions())
def test_matrix_adjoint_and_bounds_of_a_convolution(case):
    kernel, shape, stride, padding, g = case
    A = matrix_by_hand(kernel, shape, stride, padding)
    assert torch.equal(operator_matrix(kernel, shape, stride, padding), A) or torch.allclose(operator_matrix(kernel, shape, stride, padding), A, rtol=1e-12)
    v = torch.randn(shape, generator=g, dtype=torch.float64)
    Av = apply_operator(kernel[None], v[None], stride, padding)[0]
    torch.testing.assert_close(Av.flatten(), A @ v.flatten(), rtol=1e-9, atol=1e-9*kernel.abs().max().item())
    u = torch.randn(Av.shape, generator=g, dtype=torch.float64)
    torch.testing.assert_close(apply_adjoint(kernel[None], u[None], shape, stride, padding)[0].flatten(), A.T @ u.flatten(), rtol=1e-9, atol=1e-9*kernel.abs().max().item())
    truth = torch.linalg.matrix_norm(A, 2).item()
    if not kernel.any():
        assert operator_bound(kernel, shape, stride, padding).value == 0
        return
    explicit = operator_bound(kernel, shape, stride, padding, "explicit").value if truth else 0.
    if kernel.shape[-1] > stride: assert truth*(1-1e-14) <= explicit <= truth*(1+1e-9)
    for grid in (5, 8, 17): assert truth <= symbol_bound(kernel, stride, grid).value
    if truth: assert truth <= cholesky_bound(kernel, shape, stride, padding, whole=draw_whole(g)).value <= truth*(1+1e-5)
    v = power_step(kernel[None], v[None], stride, padding, steps=20)
    assert power_estimate(kernel[None], v, stride, padding).item() <= truth*(1+1e-12)
    low = (A @ torch.randn(A.shape[1], 50, generator=g, dtype=torch.float64)).norm(dim=0)
    assert (low.max() == 0) or low.isfinite().all()


@pytest.mark.property
@given(st.integers(1, 40), st.integers(1, 40), st.integers(-30, 30), st.integers(0, 2**31))
def test_bounds_of_a_dense_layer(O, I, exponent, seed):
    W = torch.randn(O, I, generator=torch.Generator().manual_seed(seed))*10.**exponent
    truth = torch.linalg.matrix_norm(W.double(), 2).item()
    bound = operator_bound(W, (I,)).value
    assert truth <= bound <= truth*(1+1e-8)
    v = power_step(W[None], torch.ones(1, I), steps=30)
    estimate = power_estimate(W[None], v).item()
    assert 0 < estimate <= truth*(1+1e-5)


@st.composite
def networks(draw):
    "A small random network with a random chain of layers."
    seed = draw(st.integers(0, 2**31))
    size, width = draw(st.sampled_from([5, 6, 8, 9])), 2*draw(st.integers(1, 4))
    g = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [Centre(), Conv((draw(st.integers(1, 3)), size, size), width, draw(st.integers(1, 4)), draw(st.integers(1, 2)), draw(st.integers(0, 2)))]
        in_shape = layers[1].in_shape
        act, block = ACTIVATIONS[draw(st.sampled_from(sorted(ACTIVATIONS)))], BLOCKS[draw(st.sampled_from(sorted(BLOCKS)))]
        layers.append(act(width))
        depth = draw(st.integers(0, 3))
        for _ in range(depth): layers += [block(layers[1].out_shape, depth, act), act(width)]
        layers += [Flatten(), Dense(math.prod(layers[1].out_shape), 8), act(8)]
        model = GloroNet(layers, HEADS[draw(st.sampled_from(sorted(HEADS)))](8, draw(st.integers(2, 5))), in_shape)
        for p in model.parameters(): p.data += draw(st.sampled_from([0., 1e-3, 0.1, 1.]))*torch.randn(p.shape)
    return model, g


@pytest.mark.property
@given(networks())
def test_no_sampled_pair_exceeds_the_proved_constants(case):
    model, g = case
    proved, frozen = model.pair_bound(), model.double()
    x = torch.rand(32, *model.image_shape, generator=g, dtype=torch.float64)
    direction = torch.randn(x.shape, generator=g, dtype=torch.float64)
    scale = 10**(3*torch.rand(32, 1, 1, 1, generator=g, dtype=torch.float64)-3)
    z = x+direction/direction.flatten(1).norm(dim=1)[:, None, None, None]*scale.clamp_min(1e-3)
    with torch.no_grad(): f, h = frozen(x), frozen(z)
    moved = (x-z).flatten(1).norm(dim=1)
    change = ((f[:, :, None]-f[:, None])-(h[:, :, None]-h[:, None])).abs()/moved[:, None, None]
    assert (change <= proved.matrix*(1+1e-6)+1e-9).all()


def test_grouped_power_step_equals_one_step_a_layer():
    kernel, v = torch.randn(5, 8, 8, 3, 3), torch.randn(5, 8, 7, 7)
    alone = torch.cat([power_step(kernel[i:i+1], v[i:i+1], 1, 1, 4) for i in range(5)])
    torch.testing.assert_close(power_step(kernel, v, 1, 1, 4), alone, rtol=1e-4, atol=1e-5)


def test_a_large_stack_goes_one_operator_at_a_time_and_says_the_same(monkeypatch):
    g = generator("large stack")
    kernel, v = torch.randn(3, 4, 2, 3, 3, generator=g).double().requires_grad_(), torch.randn(3, 2, 8, 8, generator=g).double()
    seen = []
    def watch(home, name):
        usual = getattr(home, name)
        monkeypatch.setattr(home, name, lambda *a, **k: seen.append((name, k["groups"])) or usual(*a, **k))
    watch(F, "conv2d"); watch(torch.nn.grad, "conv2d_input")
    def numbers():
        moved = krylov_step(kernel.detach(), v, 2, 1)
        estimate = power_estimate(kernel, moved, 2, 1)
        return moved, estimate.detach(), torch.autograd.grad(estimate.sum(), kernel)[0], power_residual(kernel.detach(), moved, 2, 1)
    together = numbers()
    assert set(seen) == {("conv2d", 3), ("conv2d_input", 3)}
    seen.clear(); monkeypatch.setattr("liresnet_nb.lipschitz._LARGE", kernel.numel()-1)
    for a, b in zip(together, numbers()): assert torch.allclose(a, b, rtol=1e-12, atol=1e-12)
    assert set(seen) == {("conv2d", 1), ("conv2d_input", 1)}


def test_fused_residual_block_equals_the_textbook_block():
    for size in (4, 7):
        block = LinearResidual((6, size, size), depth=3).double()
        for p in block.parameters(): torch.nn.init.normal_(p)
        x = torch.randn(2, 6, size, size, dtype=torch.float64)
        textbook = x+block.beta[:, None, None]*F.conv2d(x, block.weight, padding=1)/3**.5+block.bias[:, None, None]
        torch.testing.assert_close(block(x), textbook)


def test_gradient_of_the_estimate_is_that_of_the_norm_at_a_singular_vector():
    layer = Conv((2, 6, 6), 3, 3, padding=1).double()
    torch.nn.init.normal_(layer.weight)
    v, kernel = torch.randn(1, 2, 6, 6, dtype=torch.float64), layer.weight.detach()[None]
    while power_residual(kernel, v, 1, 1).item() > 1e-12: v = power_step(kernel, v, 1, 1, 1000)
    power_estimate(layer.weight[None], v, 1, 1).sum().backward()
    mine, layer.weight.grad = layer.weight.grad, None
    torch.linalg.matrix_norm(operator_matrix(layer.weight, layer.in_shape, 1, 1), 2).backward()
    torch.testing.assert_close(mine, layer.weight.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("scale", [1e-30, 1e-5, 1e30])
def test_estimates_neither_underflow_nor_overflow(scale):
    kernel, v = torch.randn(2, 4, 4, 3, 3), torch.randn(2, 4, 6, 6)
    usual = power_estimate(kernel, power_step(kernel, v, 1, 1, 10), 1, 1)
    scaled = power_estimate(kernel*scale, power_step(kernel*scale, v, 1, 1, 10), 1, 1)
    torch.testing.assert_close(scaled/scale, usual, rtol=1e-4, atol=0)


def test_a_zero_layer_is_constant_and_its_estimate_has_a_gradient_that_is_a_number():
    kernel = torch.zeros(1, 3, 3, 3, 3, requires_grad=True)
    v = power_step(kernel, torch.randn(1, 3, 5, 5), 1, 1)
    estimate = power_estimate(kernel, v, 1, 1)
    estimate.sum().backward()
    assert estimate.item() == 0 and kernel.grad.isfinite().all() and v.norm() > 0
    for proof in ("auto", "explicit", "symbol", "tight"): assert operator_bound(kernel[0], (3, 5, 5), 1, 1, proof) == NOTHING
    assert power_residual(kernel.detach(), v, 1, 1).item() == 0


def test_power_step_converges_to_the_norm():
    W = torch.randn(1, 20, 30, dtype=torch.float64)
    v = power_step(W, torch.randn(1, 30, dtype=torch.float64), steps=3000)
    torch.testing.assert_close(power_estimate(W, v)[0], torch.linalg.matrix_norm(W[0], 2))
    assert power_residual(W, v).item() < 1e-8


@pytest.mark.property
@given(st.integers(1, 5), st.integers(0, 6), st.integers(1, 3), st.integers(1, 3), st.floats(0, 6.3), st.floats(0, 6.3), st.integers(0, 2**31))
def test_the_coarsest_grid_bounds_the_whole_plane(k, more, O, I, alpha, beta, seed):
    "Kernels with a peak anywhere, odd and even sizes, on grids as coarse as the proof allows: never below a much finer grid."
    g = torch.Generator().manual_seed(seed)
    t = torch.arange(k, dtype=torch.float64)
    wave = torch.cos(alpha*t)[:, None]*torch.cos(beta*t)
    kernel = torch.randn(O, I, 1, 1, generator=g, dtype=torch.float64)*wave+0.1*torch.randn(O, I, k, k, generator=g, dtype=torch.float64)
    fine = torch.linalg.matrix_norm(torch.fft.fft2(kernel, s=(97, 97)).permute(2, 3, 0, 1), 2).max().item()
    for refine in (0, 2): assert symbol_bound(kernel, 1, k+more, refine).value >= fine


def test_symbol_factor_is_needed_and_enough():
    "A single cosine whose peak falls between the points of the grid: the grid alone is below the truth."
    kernel = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    kernel[0, 0, 1] = torch.tensor([1., 0., -1.])                       # |symbol| = 2|sin θ|, peak at π/2
    grid = 5                                                             # no multiple of 2π/5 is π/2
    theta = 2*math.pi*torch.arange(grid)/grid
    assert (2*theta.sin().abs()).max() < 2 <= symbol_bound(kernel, 1, grid).value


@pytest.mark.parametrize("name, shape, classes, count", [("L6W128", (3, 32, 32), 10, 3_523_338), ("L18W256", (3, 32, 32), 10, 16_943_114),
                                                         ("L6W128", (3, 64, 64), 200, 3_630_024)])
def test_parameter_counts_of_the_paper(name, shape, classes, count):
    model = build_model(name, shape, classes)
    assert n_parameters(model) == count
    assert model.body[1].out_shape[1:] == (16, 16)


def test_parameter_count_of_the_imagenet_model(monkeypatch):
    "108 million numbers: counted on the meta device, without memory."
    monkeypatch.setattr(torch.nn.init, "orthogonal_", lambda w: w)
    monkeypatch.setattr(GloroNet, "power_step", lambda self, steps=1: None)
    with torch.device("meta"): model = LiResNet(ModelConfig(18, 588, (3, 224, 224), 1000, 2048))
    assert n_parameters(model) == 108_029_228 and model.body[1].out_shape == (588, 16, 16)


def test_model_is_a_function_of_its_seed():
    a, b, c = (build_model("L1W8", (1, 8, 8), 3, seed) for seed in (0, 0, 1))
    assert torch.equal(a.head.weight, b.head.weight) and not torch.equal(a.head.weight, c.head.weight)
    state = torch.get_rng_state()
    build_model("L1W8", (1, 8, 8), 3)
    assert torch.equal(state, torch.get_rng_state()), "building a model moved torch's global stream"


def test_pair_constants_match_brute_force():
    model = build_model("L2W8", (1, 8, 8), 6)
    rows, sub = model.head.applied()["rows"].double(), 1.
    for layer in model.body:
        if isinstance(layer, LinearOperator):
            sub *= torch.linalg.matrix_norm(operator_matrix(layer.kernel().detach().double(), layer.in_shape, layer.stride, layer.padding), 2).item()
    truth = torch.tensor([[sub*(rows[j]-rows[i]).norm() for i in range(6)] for j in range(6)], dtype=torch.float64)
    proved = model.pair_bound().matrix
    assert (proved >= truth).all() and (proved <= truth*1.05).all() and (proved.diagonal() == 0).all()
    model.power_step(3000)
    torch.testing.assert_close(model.pair_est().detach().double(), truth, rtol=2e-3, atol=1e-5)


def test_constants_do_not_depend_on_the_mode_and_pair_est_moves_nothing():
    model = build_model("L2W8", (1, 8, 8), 4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train, evaluation = model.train().pair_est(), model.eval().pair_est()
    assert torch.equal(train, evaluation)
    model.constants(steps=50)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_pair_distances_have_a_finite_gradient_for_equal_rows():
    rows = torch.ones(3, 4, requires_grad=True)
    pair_distances(rows).sum().backward()
    assert rows.grad.isfinite().all()


def test_types_keep_estimates_out():
    rows = torch.eye(3)
    with pytest.raises(InputError, match="all zeros"): pair_bound(rows*torch.tensor([1., 1., 0.])[:, None], [], (1, 2, 2))
    with pytest.raises(InputError, match="at least 2"): pair_bound(rows[:1], [], (1, 2, 2))
    with pytest.raises(InputError, match="NaN or infinity"): pair_bound(rows/0, [], (1, 2, 2))
    with pytest.raises(InputError, match="1e-140|subnormal"): pair_bound(torch.tensor([[1., 1e-200], [1., 2e-200]], dtype=torch.float64), [], (1, 1, 2))
    with pytest.raises(InputError, match="below the smallest normal"): product([Bound(1e-200, "a"), Bound(1e-200, "b")])
    with pytest.raises(InputError, match="not finite"): Bound(math.inf, "x")
    with pytest.raises(InputError, match="too small"): Bound(1e-320, "subnormal")
    assert isinstance(pair_bound(rows, [("a", Bound(0., "zero"))], (1, 2, 2)), PairBound)


def test_layers_of_unknown_constant_are_refused_by_name():
    for layer in (torch.nn.ReLU(), torch.nn.BatchNorm2d(3), LipschitzLayer()):
        with pytest.raises(InputError, match=f"layer 1 .{type(layer).__name__}. has no known Lipschitz constant"):
            GloroNet([Centre(), layer], NormalizedHead(4, 2), (1, 2, 2))


def test_broken_weights_are_refused_by_layer():
    model = build_model("L1W8", (1, 8, 8), 3)
    model.body[3].weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(InputError, match=r"layer 3 \(LinearResidual\).*NaN or infinity"): model.pair_bound()


def test_bad_shapes_are_refused():
    for bad in ("L0W8", "L2W7", "l2w8", "L2W8x"):
        with pytest.raises(InputError, match="model"): build_model(bad, (1, 8, 8), 3)
    with pytest.raises(InputError, match="at least two"): build_model("L1W8", (1, 8, 8), 1)
    with pytest.raises(InputError, match="square"): build_model("L1W8", (1, 8, 16), 3)
    with pytest.raises(InputError, match="even number"): MinMax()(torch.zeros(1, 3, 2, 2))
    with pytest.raises(InputError, match="even number"): Householder(3)
    with pytest.raises(InputError, match="was made for 4 channels"): Householder(4)(torch.zeros(1, 6, 2, 2))
    with pytest.raises(InputError, match="has no blocks"): build_model("6C2F", (1, 8, 8), 3, backbone="convnet")
    for kind in ("backbone", "activation", "head"):
        with pytest.raises(InputError, match=f"unknown {kind} 'relu'"): build_model("L1W8", (1, 8, 8), 3, **{kind: "relu"})
    with pytest.raises(InputError, match="was made for inputs"): build_model("L1W8", (1, 8, 8), 3)(torch.zeros(1, 1, 16, 16))


@pytest.mark.parametrize("scale", [1., 1e-25, 1e25])
def test_lanczos_makes_more_of_the_same_products(scale):
    "One product: the power method. More: the best that their span holds (by eigenvalues), never above the truth."
    g = torch.Generator().manual_seed(0)
    kernel, v = torch.randn(3, 4, 3, 3, 3, generator=g)*scale, torch.randn(3, 3, 6, 6, generator=g)
    v = v/v.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(krylov_step(kernel, v, 2, 1, 1), power_step(kernel, v, 2, 1, 1))
    wide, u = kernel.double(), v.double()
    reached = []
    for k in (2, 3, 5):
        found = krylov_step(wide, u, 2, 1, k)
        estimate = power_estimate(wide, found, 2, 1)
        torch.testing.assert_close(krylov_step(kernel, v, 2, 1, k).double(), found, rtol=0, atol=1e-3)
        torch.testing.assert_close(torch.cat([krylov_step(wide[i:i+1], u[i:i+1], 2, 1, k) for i in range(3)]), found)
        for i in range(3):
            A = operator_matrix(wide[i], (3, 6, 6), 2, 1)/scale
            span = [u[i].flatten()]
            for _ in range(k-1): span.append(A.T @ (A @ span[-1])); span[-1] /= span[-1].norm()
            Q = torch.linalg.qr(torch.stack(span, 1))[0]
            best = torch.linalg.eigvalsh(Q.T @ A.T @ A @ Q)[-1].sqrt()
            assert best*(1-1e-2) <= estimate[i]/scale <= torch.linalg.matrix_norm(A, 2)*(1+1e-9)
            assert estimate[i] > power_estimate(wide, power_step(wide, u, 2, 1, k), 2, 1)[i]
        reached.append(estimate)
    assert (reached[0] < reached[1]).all() and (reached[1] < reached[2]).all()
    assert found.flatten(1).norm(dim=1).sub(1).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("products", [1, 2, 4, 6, 10, 16])
def test_lanczos_arrives_whatever_it_is_called_with(products, dtype):
    "More products than directions, near-identities, many operators: it never freezes, and stays when it is there."
    g = torch.Generator().manual_seed(1)
    narrow, square = torch.randn(20, 50, 2, generator=g, dtype=dtype), torch.randn(20, 12, 12, generator=g, dtype=dtype)
    for A in (narrow, square):
        v = torch.randn(20, A.shape[2], generator=g, dtype=dtype)                         # not of length 1
        for _ in range(200): v = krylov_step(A, v, steps=products)
        truth = torch.linalg.matrix_norm(A.double(), 2)
        assert (power_estimate(A, v).double()/truth).min() > 0.999
        torch.testing.assert_close(v.norm(dim=1), torch.ones(20, dtype=dtype))
    near = torch.randn(2, 16, 16, 3, 3, generator=g, dtype=dtype)/200
    near[:, range(16), range(16), 1, 1] += 1
    v = torch.randn(2, 16, 8, 8, generator=g, dtype=dtype)
    v = v/v.flatten(1).norm(dim=1)[:, None, None, None]
    moved = krylov_step(near, v, 1, 1, products)
    assert ((moved-v).flatten(1).norm(dim=1) > 0.05).all()
    assert (power_estimate(near, moved, 1, 1) >= power_estimate(near, power_step(near, v, 1, 1, products), 1, 1)*(1-1e-5)).all()


def test_lanczos_stays_where_there_is_nothing_to_find():
    v = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    v = v/v.flatten(1).norm(dim=1)[:, None, None, None]
    assert torch.equal(krylov_step(torch.zeros(2, 4, 3, 3, 3, dtype=torch.float64), v, 1, 1, 4), v)
    A = torch.diag(torch.tensor([3., 2., 0., 0.], dtype=torch.float64))[None]
    for start, wanted in (([1., 0, 0, 0], [1., 0, 0, 0]), ([0, 1., 0, 0], [0, 1., 0, 0]), ([0, 0, 0, 1.], [0, 0, 0, 1.]), ([.6, .8, 0, 0], [1., 0, 0, 0])):
        end = krylov_step(A, torch.tensor([start], dtype=torch.float64), steps=6)      # more products than directions
        torch.testing.assert_close(end, torch.tensor([wanted], dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_gradient_of_minmax_goes_back_the_way_its_number_came(dtype):
    "Autograd's numbers where no two are equal, in either layout; the same length where some are."
    draw = generator("back")
    x, grad = (torch.randn(3, 8, 5, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    for layout in (torch.contiguous_format, torch.channels_last):
        for values, ties in ((x, False), (x.round(), True)):
            given = values.to(dtype).contiguous(memory_format=layout).requires_grad_()
            out, g = MinMax()(given), grad.to(dtype)*2.**torch.randint(-60, 60, grad.shape, generator=draw)
            back, = torch.autograd.grad(out, given, g.to(dtype), retain_graph=True)
            a, b = given.chunk(2, 1)
            assert torch.equal(out, torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1))
            assert bool((a == b).any()) == ties or dtype == torch.bfloat16
            assert torch.equal(back.abs().sort(1)[0], g.to(dtype).abs().sort(1)[0])            # no entry changed or lost
            slow, = torch.autograd.grad(torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1), given, g.to(dtype))
            apart = (a != b).repeat(1, 2, 1, 1)
            assert torch.equal(back[apart], slow[apart])
    if dtype == torch.float64:
        assert torch.autograd.gradcheck(MinMax(), x.clone().requires_grad_())
        assert torch.autograd.gradgradcheck(MinMax(), x.clone().requires_grad_())
    one = lambda x: (MinMax()(x[None])[0]*grad[0].to(dtype)).sum()                              # torch.func, and batches of gradients
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(one))(x.to(dtype))[0], torch.func.grad(one)(x[0].to(dtype)))
    given = x.to(dtype).requires_grad_()
    each = torch.autograd.grad(MinMax()(given), given, torch.stack([grad, 2*grad]).to(dtype), is_grads_batched=True)[0]
    assert torch.equal(each[0]*2, each[1]) and torch.equal(each[0], torch.autograd.grad(MinMax()(given), given, grad.to(dtype))[0])
    whole = torch.compile(MinMax(), backend="aot_eager", fullgraph=True)                       # no graph break
    given = x.to(dtype).requires_grad_()
    assert torch.equal(torch.autograd.grad(whole(given), given, grad.to(dtype))[0],
                       torch.autograd.grad(MinMax()(given), given, grad.to(dtype))[0])


class Row(LinearOperator):
    "A 1×k convolution, as a user might write it."
    def __init__(self):
        super().__init__((1, 8, 8), 4)
        self.weight, self.out_shape = torch.nn.Parameter(torch.ones(4, 1, 1, 5)), (4, 8, 4)

    def kernel(self): return self.weight


def test_kernels_without_a_proof_are_refused():
    for kernel in (torch.ones(2, 2, 1, 4), torch.ones(2, 2, 5, 3), torch.ones(2, 2, 3)):
        with pytest.raises(InputError, match="has no proof here"): symbol_bound(kernel, 2)
    with pytest.raises(InputError, match="has no proof here"): operator_bound(torch.ones(2, 2, 1, 4), (2, 20, 20))
    with pytest.raises(InputError, match=r"layer 0 \(Row\).*has no proof here"): GloroNet([Row(), Flatten()], NormalizedHead(128, 2), (1, 8, 8)).pair_bound()


def test_a_constant_inherited_under_a_new_forward_is_refused():
    class Ten(MinMax):
        def forward(self, x): return 10*super().forward(x)

    class Circular(Conv):
        def forward(self, x): return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), self.kernel(), self.bias)

    class Own(Conv):
        def kernel(self): return 2*self.weight
    for layer in (Ten(), Circular((2, 6, 6), 2, 3, padding=1)):
        with pytest.raises(InputError, match="computes anew"): GloroNet([layer, Flatten()], NormalizedHead(72, 2), (2, 6, 6))
    GloroNet([Own((2, 6, 6), 2, 3, padding=1), Flatten()], NormalizedHead(72, 2), (2, 6, 6)).pair_bound()


def liar(answer):
    class Liar(LipschitzLayer):
        kind = "liar"
        def forward(self, x): return 3*x
        def lipschitz_est(self, known): return torch.tensor(3.)
        def lipschitz_bound(self, known): return answer
    return Liar()


def test_bounds_that_are_none_or_below_the_truth_are_refused():
    net = lambda answer: GloroNet([liar(answer), Flatten()], NormalizedHead(4, 2), (1, 2, 2))
    with pytest.raises(InputError, match="returned a float: wanted a Bound"): net(3.).pair_bound()
    for call in (net(Bound(2., "a slip")).constants, net(Bound(2., "a slip")).pair_bound, net(Bound(3*(1-1e-6), "a slip")).pair_bound):
        with pytest.raises(InputError, match=r"layer 0 \(Liar\): this layer stretches a pair of inputs by (3|2.99999).*more than its bound"): call()
    net(Bound(3., "right")).pair_bound()
    shy = net(Bound(3., "right"))
    type(shy.body[0]).lipschitz_est = lambda self, known: torch.tensor(4.)
    with pytest.raises(InputError, match="estimate 4 lies above the bound 3"): shy.constants()


def test_a_head_is_what_its_rows_say():
    class Cubed(NormalizedHead):
        def forward(self, x): return F.linear(x, self.rows(), self.bias)**3
    model, x = GloroNet([Flatten()], Cubed(4, 3), (1, 2, 2)), torch.rand(5, 1, 2, 2)
    torch.testing.assert_close(model(x), F.linear(x.flatten(1), model.head.rows(), model.head.bias))


def test_operators_of_equal_shapes_and_other_kernels_do_not_share_a_stack():
    class Both(LipschitzLayer):
        kind = "both"

        def __init__(self):
            super().__init__()
            self.a, self.b = Conv((1, 8, 8), 2, 3, 2, 1), Conv((1, 8, 8), 2, 4, 2, 1)

        def forward(self, x): return self.a(x)+self.b(x)
        def lipschitz_est(self, known): return known[self.a]+known[self.b]
        def lipschitz_bound(self, known): return known[self.a]+known[self.b]
    model = GloroNet([Both(), Flatten()], NormalizedHead(32, 2), (1, 8, 8))
    model.power_step(200)
    assert model.sub_lipschitz_est().item() <= model.pair_bound().sub_lipschitz.value*(1+1e-6)


# Architectures to compare with (arXiv:2301.12549 Appendix B, C; arXiv:2102.08452)

@pytest.mark.parametrize("name, shapes, dense", [
    ("6C2F", [(32, 32, 32), (32, 32, 32), (32, 16, 16), (64, 16, 16), (64, 16, 16), (64, 8, 8)], 512),
    ("8C2F", [(64, 32, 32), (64, 32, 32), (64, 16, 16), (128, 16, 16), (128, 16, 16), (128, 8, 8), (256, 8, 8), (256, 4, 4)], 256)])
def test_the_networks_of_gloro_are_those_of_its_paper(name, shapes, dense, monkeypatch):
    monkeypatch.setattr(torch.nn.init, "orthogonal_", lambda w: w)
    monkeypatch.setattr(GloroNet, "power_step", lambda self, steps=1: None)
    with torch.device("meta"): model = build_model(name, (3, 32, 32), 10)
    assert [op.out_shape for op in model.body if isinstance(op, Conv)] == shapes
    assert model.head.weight.shape == (10, dense) and model.config.name == name
    assert sum(isinstance(layer, MinMax) for layer in model.body) == len(shapes)+1


def test_only_the_block_differs():
    nets = {b: build_model("L2W8", (1, 8, 8), 3, backbone=b) for b in BLOCKS}
    assert [type(n).__name__ for n in nets.values()] == ["LiResNet", "ConvNet", "ResNet"]
    counts = {b: n_parameters(n) for b, n in nets.items()}
    assert counts["liresnet"]-counts["convnet"] == 2*8 and counts["resnet"]-counts["liresnet"] == 2*(9*8*8+8)
    for k, layers in enumerate(zip(*(n.body for n in nets.values()))):
        assert k in (3, 5) or len({repr(layer) for layer in layers}) == 1
    x = torch.rand(4, 1, 8, 8)
    fresh = nets["resnet"].body
    torch.testing.assert_close(fresh[3](fresh[:3](x)), fresh[:3](x), rtol=0, atol=0)      # β = 0: the identity


def test_a_residual_block_is_its_formula_and_its_bound_the_triangle_inequality():
    block = build_model("L1W8", (1, 16, 16), 3, backbone="resnet").body[3].double()
    for p in block.parameters(): torch.nn.init.normal_(p)
    x = torch.randn(5, 8, 8, 8, dtype=torch.float64)
    inner = torch.nn.functional.conv2d(x, block.inner.weight, block.inner.bias, padding=1)
    branch = block.outer.beta[:, None, None]*torch.nn.functional.conv2d(MinMax()(inner), block.outer.weight, padding=1)
    for y in (block(x), block.plain(x)): torch.testing.assert_close(y, x+branch+block.outer.bias[:, None, None])
    size = [torch.linalg.matrix_norm(operator_matrix(op.kernel().detach(), (8, 8, 8), 1, 1), 2).item() for op in (block.inner, block.outer)]
    proved = block.lipschitz_bound({op: op.prove() for op in (block.inner, block.outer)}).value
    assert 1+size[0]*size[1] <= proved <= (1+size[0]*size[1])*(1+1e-5)
    assert block.lipschitz_est({block.inner: torch.tensor(3.), block.outer: torch.tensor(2.)}) == 7


@pytest.mark.property
@given(st.integers(0, 2**31), st.floats(2**-10, 2**10), st.booleans())
def test_householder_is_a_reflection_that_meets_itself_at_the_mirror(seed, length, flat):
    g = torch.Generator().manual_seed(seed)
    layer = Householder(4)
    v = torch.randn(2, 2, generator=g).clamp(-1, 1)
    layer.mirror.data = v/v.norm(dim=0)*length
    v = layer.mirror.detach().double()
    assume_lengths = v.norm(dim=0)
    if not ((assume_lengths >= 2**-10) & (assume_lengths <= 2**10)).all(): return
    shape = (50, 4) if flat else (50, 4, 3, 3)
    x, z = (torch.randn(2, *shape, generator=g, dtype=torch.float64)*10**torch.empty(1, dtype=torch.float64).uniform_(-6, 6, generator=g)).unbind()
    fx, fz = layer.plain(x), layer.plain(z)
    pairs = lambda t: torch.stack(t.chunk(2, 1))                                     # [2,B,2,...]
    side = (pairs(x)*v.view(2, 1, 2, *[1]*(x.ndim-2))).sum(0)
    u = (v/v.norm(dim=0)).view(2, 1, 2, *[1]*(x.ndim-2))
    mirrored = pairs(x)-2*(pairs(x)*u).sum(0)*u
    torch.testing.assert_close(pairs(fx), torch.where(side < 0, mirrored, pairs(x)), rtol=1e-12, atol=1e-12*x.abs().max().item())
    length_of = lambda t: t.flatten(1).norm(dim=1)
    assert (length_of(fx-fz) <= length_of(x-z)*(1+1e-12)).all()
    on = pairs(x)-(pairs(x)*u).sum(0)*u                                              # the mirror itself stays
    torch.testing.assert_close(layer.plain(torch.cat(on.unbind(), 1)), torch.cat(on.unbind(), 1), rtol=1e-9, atol=1e-12*x.abs().max().item())
    single = x.float()
    slope, offset = map(float, layer.rounding(shape[1:], torch.float32))
    assert (length_of(layer.plain(single).double()-layer.plain(single.double())) <= slope*length_of(single.double())+offset).all()


def test_householder_starts_as_minmax_and_refuses_a_mirror_without_direction():
    layer, x = Householder(6), torch.randn(100, 6)
    torch.testing.assert_close(layer(x), MinMax()(x))
    layer.mirror.data[:, 1] = 0
    with pytest.raises(InputError, match="mirror of Householder has length 0"): layer.lipschitz_bound({})
    with pytest.raises(InputError, match="mirror of Householder has length"): layer.rounding((6,), torch.float32)
    layer.mirror.data[:, 1] = float("nan")
    with pytest.raises(InputError, match="NaN"): layer.lipschitz_bound({})


def test_rows_of_a_plain_head_are_its_weights_and_normalised_ones_have_length_one():
    plain, normal = Head(4096, 50), NormalizedHead(4096, 50)
    assert plain.rows() is plain.weight
    torch.testing.assert_close(normal.rows().norm(dim=1), torch.ones(50))
    assert (plain.weight.norm(dim=1)-1).abs().max() < 0.1 and (normal.weight.std()-1).abs() < 0.02


def test_the_account_of_a_residual_block_holds_those_of_its_parts():
    block = build_model("L1W8", (1, 16, 16), 3, backbone="resnet", activation="householder").body[3]
    for p in block.parameters(): torch.nn.init.uniform_(p)      # where all is positive, no term hides behind |W|
    shape, single = (8, 8, 8), torch.float32
    (inner, b1), (outer, b2), (bend, _) = (part.rounding(shape, single) for part in (block.inner, block.outer, block.activation))
    size = [torch.linalg.matrix_norm(operator_matrix(op.kernel().detach(), shape, 1, 1), 2).item() for op in (block.inner, block.outer)]
    slope, offset = block.rounding(shape, single)
    through = float(inner)*size[1]+float(bend)*size[0]*size[1]+float(outer)*size[0]          # each error, passed on by what follows
    assert through+float(2**-24*size[0]*size[1]) <= float(slope) <= 3*through
    assert float(b1)*size[1]+float(b2) <= float(offset)


def test_a_class_builds_its_own_kind_of_network_only():
    config = ModelConfig(1, 8, (1, 8, 8), 3, 8)
    for cls, own in ((LiResNet, "liresnet"), (ConvNet, "convnet"), (ResNet, "resnet"), (GloroConvNet, "6C2F")):
        for backbone in (*BLOCKS, "6C2F"):
            if backbone == own: assert type(named_net(replace(config, backbone=own))) is cls
            else:
                with pytest.raises(InputError, match=f"unknown backbone of {cls.__name__}"): cls(replace(config, backbone=backbone))
    with pytest.raises(InputError, match="dense 0"): build_model("L1W8", (1, 8, 8), 3, dense=0)
