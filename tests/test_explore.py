"A figure as a function of its controls: live, and as frames."
import plotly.graph_objects as go
import pytest

from liresnet_nb.core import InputError
from liresnet_nb.explore import Control, attempt, explore, still


def plot(scale=1., name="a"):
    if scale == 3: raise InputError("scale is 3: wanted another")
    fig = go.Figure([go.Scatter(x=[0, 1], y=[0, scale], name=name), go.Bar(x=[0, 1], y=[1, 2])])
    return fig.update_layout(height=300, title_text=f"{name} {scale:g}")


SCALE = Control("scale", (1, 2, 3), 2)


def test_a_moved_control_redraws_the_same_figure():
    page = explore(plot, scale=SCALE, name=Control("name", ("a", "b")))
    figure, line = page.figure, page.figure.data[0]
    assert line.y == (0, 2)
    page.controls["scale"].value = 1
    assert page.figure is figure and figure.data[0] is line and line.y == (0, 1) and figure.layout.title.text == "a 1"
    page.controls["name"].value = "b"
    assert line.name == "b" and figure.data[1].y == (1, 2)


def test_a_refused_position_says_why_and_keeps_the_figure():
    page = explore(plot, scale=SCALE)
    page.controls["scale"].value = 3
    assert page.message.value == "scale is 3: wanted another" and page.figure.data[0].y == (0, 2)
    page.controls["scale"].value = 1
    assert page.message.value == "" and page.figure.data[0].y == (0, 1)
    broken = explore(lambda k: go.Figure(go.Scatter(y=[1/k])), k=Control("k", (1, 0)))
    broken.controls["k"].value = 0
    assert "division by zero" in broken.message.value and broken.figure.data[0].y == (1,)


def test_another_number_of_traces_is_drawn_too():
    page = explore(lambda n: go.Figure([go.Scatter(y=[k]) for k in range(n)]), n=Control("n", (1, 3)))
    page.controls["n"].value = 3
    assert [t.y for t in page.figure.data] == [(0,), (1,), (2,)]


def test_a_click_moves_two_controls_to_the_nearest_positions():
    page = explore(lambda x, y: go.Figure(go.Scatter(x=[x], y=[y])), clicks=("x", "y"), x=Control("x", (0, .5, 1)), y=Control("y", (0, .5, 1)))
    points, drawn = type("Points", (), dict(xs=[.6], ys=[.9], point_inds=[0])), []
    page.figure.data[0].on_change(lambda *_: drawn.append(page.values()), "x", "y")
    for callback in page.figure.data[0]._click_callbacks: callback(page.figure.data[0], points, None)     # what the page's click calls
    assert page.values() == dict(x=.5, y=1) and page.figure.data[0].x == (.5,)
    assert drawn == [dict(x=.5, y=1)], "one click, one drawing"


def test_what_the_new_figure_lacks_is_gone():
    def bare(full):
        if not full: return go.Figure(go.Scatter(y=[2]))
        fig = go.Figure(go.Scatter(y=[1], text=["a"], name="x"), layout=dict(height=400))
        return fig.add_annotation(text="there", x=0, y=0)
    page = explore(bare, full=Control("full", (1, 0)))
    page.controls["full"].value = 0
    trace, layout = page.figure.data[0], page.figure.layout
    assert (trace.text, trace.name, layout.height, layout.annotations) == (None, None, None, ())


def test_frames_hold_what_moves_and_only_that():
    fig = still(plot, scale=Control("scale", (1, 2), 2), name="b")
    assert [f.name for f in fig.frames] == ["1", "2"] and all(f.traces == (0,) for f in fig.frames)
    assert fig.data[0].y == (0, 2) and fig.frames[0].data[0].y == (0, 1) and fig.frames[0].layout.title.text == "b 1"
    assert fig.frames[0].layout.height is None and len(fig.layout.sliders[0].steps) == 2 and fig.layout.sliders[0].active == 1


def test_a_still_refuses_what_it_cannot_show():
    with pytest.raises(InputError, match="wanted one Control"): still(plot, scale=1)
    with pytest.raises(InputError, match="number of traces changes"): still(lambda n: go.Figure([go.Scatter(y=[k]) for k in range(n)]), n=Control("n", (1, 2)))
    with pytest.raises(InputError, match="starts at 9"): Control("n", (1, 2), 9)
    with pytest.raises(InputError, match="no positions"): Control("n", ())
    with pytest.raises(InputError, match="read alike"): Control("n", (.12341, .12342))
    with pytest.raises(InputError, match="wanted a Control"): explore(plot, scale=2)


def test_an_attempt_says_what_is_missing():
    def check(f): assert f(2) == 4, "wanted the square"
    assert not attempt(check, lambda x: ...) and "wanted the square" in repr(attempt(check, lambda x: ...))
    assert attempt(check, lambda x: x*x) and repr(attempt(check, lambda x: x*x)) == "✓ solved"
    assert "division by zero" in repr(attempt(check, lambda x: 1/0))
