"""Promises of the metrics: code, documentation and dashboard name the same, and Grafana can import the dashboard."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

metrics = pytest.importorskip("dino_ray.engine.ray.metrics")

ROOT = Path(__file__).parents[2]
DASHBOARD: dict[str, Any] = json.loads((ROOT / "cluster/grafana/dino-ray.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
NAME = re.compile(r"\bray_\w+")


def exported() -> set[str]:
    """Our metrics as Prometheus knows them."""
    endings = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_sum", "_count"]}
    return {f"ray_{m.name}{ending}" for m in metrics.METRICS for ending in endings[m.kind]}


def test_documentation_and_code_describe_the_same_metrics() -> None:
    rows = re.findall(
        r"^\| `(dino_ray_\w+)` \| (\w+) \| (.+) \| (.+) \|$", (ROOT / "docs/metrics.md").read_text(), re.M
    )
    documented = [
        (name, kind, tuple(re.findall(r"`(\w+)`", labels)), meaning) for name, kind, labels, meaning in rows
    ]
    assert documented == [(m.name, m.kind, m.labels, m.meaning) for m in metrics.METRICS]


def test_the_dashboard_shows_every_metric_of_ours_and_none_that_is_not() -> None:
    used = {name for expression in EXPRESSIONS for name in NAME.findall(expression)}
    ours = {name for name in used if name.startswith("ray_dino_ray_")}
    assert ours <= exported()
    shown = {m.name for m in metrics.METRICS if any(name.startswith(f"ray_{m.name}") for name in ours)}
    assert shown == {m.name for m in metrics.METRICS}


def test_rays_own_metrics_on_the_dashboard_are_those_that_ray_draws_itself() -> None:
    import ray.dashboard.modules.metrics.dashboards.default_dashboard_panels as panels

    known = set(NAME.findall(Path(panels.__file__).read_text()))
    used = {name for expression in EXPRESSIONS for name in NAME.findall(expression)}
    assert used - exported() <= known
    assert used - exported()


def test_every_expression_of_ours_is_of_the_chosen_jobs_and_brackets_close() -> None:
    for expression in EXPRESSIONS:
        assert expression.count("(") == expression.count(")")
        assert len(re.findall(r"\bray_dino_ray_\w+", expression)) == expression.count('{JobId=~"$JobId"}')


def test_panels_have_what_grafana_asks_for_and_do_not_overlap() -> None:
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & taken, panel["title"]
        taken |= cells
    assert max(x for x, _ in taken) == 23  # Grafana's grid has 24 columns
    for panel in PANELS:
        assert all(panel[field] for field in ("title", "description", "targets"))
        assert panel["datasource"] == source
        assert all(target["datasource"] == source for target in panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_the_data_source_and_the_job_are_variables_and_nothing_is_bound_to_one_installation() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["JobId"]["query"]["query"] == "label_values(ray_dino_ray_replicas_ready, JobId)"
    assert "id" not in DASHBOARD
    assert {"title", "uid", "schemaVersion", "time", "refresh"} <= set(DASHBOARD)


def test_buckets_tell_a_merge_from_a_large_model() -> None:
    edges = metrics.BOUNDARIES_S
    assert list(edges) == sorted(set(edges))
    assert edges[0] <= 0.01
    assert edges[-1] >= 300
