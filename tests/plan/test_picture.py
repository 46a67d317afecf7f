"""The picture of a plan: what is drawn, where it lies, and that nothing in it is more than text."""

from __future__ import annotations

import itertools
import random
import xml.etree.ElementTree as ET

import pytest

import headrace as hr
from headrace.plan.graph import Graph
from headrace.plan.picture import Picture, laid_out, svg


def fish(app: hr.App) -> hr.App:
    db = app.postgres("postgresql://me:secret@db/fish", tables=r"public\.(measured|weighed)", prefix="f")
    measured, weighed = db["public.measured"], db["public.weighed"]
    weight = app.model("weight", hr.LinearRegression(), features=["length"], target="weight")
    graded = weight.predict(measured).to("predictions").grade(weighed, on="id", within="1 min").to("grades")
    alarm = graded.window(5).mean("error").to("means").above(2.0).to("alarms")
    weight.retrain(on=alarm, rows=graded.last(60))
    weight.serve()
    online = app.model("online", hr.LinearRegression(), features=["length"], target="weight")
    online.learn(online.predict(measured).grade(weighed, on="id", within="1 min").to("online-grades"))
    app.topic("means").to("copies")
    app.topic("alarms").to_http("http://127.0.0.1:1/alarm", name="pager")
    return app


def test_everything_that_is_declared_is_a_part() -> None:
    graph = fish(hr.App("fish", log="memory://")).plan().graph()
    topics = "f.public.measured f.public.weighed predictions grades means alarms weight-training online-grades copies"
    assert set(graph.parts) == {
        "source:f", "endpoint:/prediction", "sink:pager", "training:weight", "model:weight", "model:online",
        "operator:weight/1", "operator:weight/2", "operator:weight/3", "operator:online/1",
        *(f"topic:{name}" for name in topics.split()),
    }  # fmt: skip
    arrows = {(arrow.start, arrow.end): arrow for arrow in graph.arrows.values()}
    assert {pair for pair in arrows if "operator:weight/1" in pair} == {
        ("model:weight", "operator:weight/1"), ("topic:f.public.weighed", "operator:weight/1"),
        ("operator:weight/1", "topic:grades"), ("operator:weight/1", "operator:weight/2"),
        ("operator:weight/1", "training:weight"),
    }  # fmt: skip
    assert arrows["training:weight", "model:weight"].back and arrows["operator:online/1", "model:online"].back
    assert ("topic:alarms", "sink:pager") in arrows and ("topic:means", "topic:copies") in arrows


def check(picture: Picture) -> None:
    """Nothing lies over another part or outside of the picture, and rows go from left to right."""
    apart(picture)
    for _, points in picture.ways:
        if points[0][0] < points[-1][0]:
            assert all(a[0] <= b[0] for a, b in itertools.pairwise(points))


def apart(picture: Picture) -> None:
    """Nothing lies over another part or outside of the picture."""
    boxes = list(picture.boxes.values())
    for (x, y, width, height), (a, b, w, h) in itertools.combinations(boxes, 2):
        assert x + width <= a or a + w <= x or y + height <= b or b + h <= y
    for x, y, width, height in boxes:
        assert x >= 0 and y >= 0 and x + width <= picture.width and y + height <= picture.height
    for _, points in picture.ways:
        assert all(0 <= x <= picture.width and 0 <= y <= picture.height for x, y in points)


def test_a_pipeline_is_laid_out() -> None:
    picture = laid_out(fish(hr.App("fish", log="memory://")).plan().graph())
    check(picture)
    left = {name: box[0] for name, box in picture.boxes.items()}
    ways = ["source:f", "topic:f.public.measured", "model:weight", "operator:weight/1", "operator:weight/2"]
    assert all(left[a] < left[b] for a, b in itertools.pairwise([*ways, "operator:weight/3", "training:weight"]))


@pytest.mark.parametrize("seed", range(6))
def test_any_graph_is_laid_out(seed: int) -> None:
    """Circles, parts that nothing joins, many arrows, 5 parts to 200."""
    chance = random.Random(seed)
    graph = Graph()
    count = chance.choice([5, 40, 200])
    names = [graph.add_topic("t" * chance.randrange(1, 60) + str(i)) for i in range(count)]
    for _ in range(int(count * chance.uniform(0.5, 2))):
        start, end = chance.sample(names, 2)
        graph._join(start, end)
    check(laid_out(graph))
    for width in (330.0, 1220.0):
        picture = laid_out(graph, spare={"topic": 2}, width=width)
        assert picture.width <= width
        apart(picture)


def test_a_pipeline_is_readable_on_a_telephone() -> None:
    """Columns in bands, one below the other; ways that lead from one band to another pass through no part."""
    graph = fish(hr.App("fish", log="memory://")).plan().graph()
    picture = laid_out(graph, spare=2, width=330.0)
    assert picture.width <= 330
    apart(picture)
    assert len({box[0] for box in picture.boxes.values()}) == 2
    assert all(len(text) <= 14 for lines in picture.texts.values() for some in lines for text in some)
    for _, points in picture.ways:
        for (x, y), (a, b) in itertools.pairwise(points):
            if x == a:
                assert not any(
                    left < x < left + width and top < max(y, b) and min(y, b) < top + height
                    for left, top, width, height in picture.boxes.values()
                )


def test_a_long_way_and_nothing_at_all() -> None:
    graph = Graph()
    names = [graph.add_topic(str(i)) for i in range(3000)]
    for start, end in itertools.pairwise(names):
        graph._join(start, end)
    picture = laid_out(graph)
    assert len({box[0] for box in picture.boxes.values()}) == 3000
    assert ET.fromstring(svg(laid_out(Graph()))).tag.endswith("svg")


HOSTILE = "<script>alert(1)</script>\"'&"


def test_names_are_text_and_secrets_are_not_shown() -> None:
    app = fish(hr.App("fish", log="memory://"))
    app.topic("plain", append=True).to("zä" + HOSTILE.replace("/", ""))
    drawn = app.plan()._repr_html_()
    root = ET.fromstring(drawn)
    tags = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert tags == {"svg", "style", "defs", "marker", "path", "g", "rect", "text", "title"}
    assert "secret" not in drawn and "me@" not in drawn
    graph = Graph()
    graph.add_topic(HOSTILE, HOSTILE)
    linked = ET.fromstring(svg(laid_out(graph), link=lambda part: f"/topics/{part.title}"))
    (link,) = (element for element in linked.iter() if element.tag.endswith("}a"))
    assert link.attrib == {"href": f"/topics/{HOSTILE}"}
    assert next(text for text in linked.itertext() if "alert" in text) == f"{HOSTILE}: {HOSTILE}"
