"""Ray exports the progress and costs of a run in Prometheus's format."""

import time
import urllib.request
from collections.abc import Callable

import pytest
import ray

from clipmill.costs import Cost
from pipelines.metrics import export_costs, export_progress
from pipelines.progress import Reporter

_WAIT_S = 60.0

pytest.importorskip("prometheus_client", reason="needs ray[default]")


def exported(wanted: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """clipmill's lines of this node's metrics, once they are as wanted: name and its own tags -> value."""
    node = ray.nodes()[0]
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline_s = time.monotonic() + _WAIT_S
    while True:
        text = opener.open(url, timeout=10).read().decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith("ray_clipmill")]
        values = {f"{key.partition('{')[0]} {_tags(key)}": float(value) for key, _, value in lines}
        if wanted(values) or time.monotonic() > deadline_s:
            return values
        time.sleep(0.5)


def _tags(key: str) -> str:
    own = [tag for tag in key.partition("{")[2].split(",") if tag.startswith(("command=", "stage="))]
    return " ".join(tag.strip('"').replace('="', "=") for tag in sorted(own))


def own_cpu_seconds(values: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if "stage_cpu_seconds" in key and "command=exported" in key}


@pytest.mark.slow
def test_progress_and_costs_are_exported(local_ray: None, capsys: pytest.CaptureFixture[str]) -> None:
    gauges = {f"ray_clipmill_{name} command=exported" for name in ("done", "total", "end_time_seconds")}
    with Reporter("exported", unit="sources") as report:
        report.begin(10)
        report.reached(4)
        export_costs("exported", {"scan": Cost(cpu_s=2.5), "video": Cost(tokens_in=30)})
        export_costs("exported", {"scan": Cost(cpu_s=1.5)})
        # Ray sends metrics from time to time, and those of other tests' commands may be there already.
        values = exported(lambda values: gauges <= set(values) and 4.0 in own_cpu_seconds(values).values())
    assert values["ray_clipmill_done command=exported"] == 4
    assert values["ray_clipmill_total command=exported"] == 10
    assert abs(values["ray_clipmill_end_time_seconds command=exported"] - time.time()) < 600
    cpu_s = own_cpu_seconds(values)
    assert list(cpu_s.values()) == [4.0], cpu_s
    assert all("stage=scan" in key for key in cpu_s)


def test_without_ray_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    export_progress("none", done=1, total=2, end_time_s=None)
    export_costs("none", {"scan": Cost(cpu_s=1)})
