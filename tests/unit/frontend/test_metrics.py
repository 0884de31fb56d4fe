"""Names, labels and buckets that dashboards rely on."""

from __future__ import annotations

import os

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tgis_server.frontend.metrics import SPECS, Metrics
from tgis_server.frontend.metrics.metrics import DURATION_BUCKETS
from tgis_server.wire import shard_pb2 as pb
from tgis_server.wire.messages import StepStats

NO_PROCESS = 2**30  # above the highest process id that Linux gives


def metrics() -> Metrics:
    return Metrics(max_sequence_length=128, max_new_tokens=64, max_batch_size=3)


def samples(source: Metrics) -> dict[str, float]:
    """``name{label=value,...}`` -> value, as a scraper reads them."""
    found = {}
    for family in text_string_to_metric_families(source.to_text().decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def buckets(source: Metrics, name: str) -> list[float]:
    text = source.to_text().decode()
    return [
        float(line.split('le="')[1].split('"')[0]) for line in text.splitlines() if line.startswith(f"{name}_bucket")
    ]


def test_startup_is_reported_phase_by_phase():
    source = metrics()
    shard = [
        pb.Phase(name="starting", started_at_s=13.0),
        pb.Phase(name="reading weights", started_at_s=14.0, bytes=1000),
        pb.Phase(name="serving", started_at_s=18.0),
    ]
    frontend = [pb.Phase(name="starting", started_at_s=12.5), pb.Phase(name="serving", started_at_s=20.0)]

    source.observe_start((("resolving", 10.0), ("checking", 11.0)), {"shard-0": shard, "frontend": frontend})

    assert {name: value for name, value in samples(source).items() if name.startswith("tgi_startup")} == {
        "tgi_startup_seconds": 10.0,
        "tgi_startup_phase_seconds{phase=resolving,process=launcher}": 1.0,
        "tgi_startup_phase_seconds{phase=checking,process=launcher}": 1.5,
        "tgi_startup_phase_seconds{phase=starting,process=shard-0}": 1.0,
        "tgi_startup_phase_seconds{phase=reading weights,process=shard-0}": 4.0,
        "tgi_startup_phase_seconds{phase=starting,process=frontend}": 7.5,
        "tgi_startup_phase_bytes{phase=reading weights,process=shard-0}": 1000.0,
    }


def test_a_counter_is_exported_under_its_bare_name_and_with_total():
    source = metrics()

    source.count_call("single", 1)
    source.count_failure("conc_limit")

    found = samples(source)
    assert found["tgi_request_count{kind=single}"] == found["tgi_request_count_total{kind=single}"] == 1
    assert found["tgi_request_failure{err=conc_limit}"] == found["tgi_request_failure_total{err=conc_limit}"] == 1


def test_creation_times_are_not_exported():
    assert "_created" not in metrics().to_text().decode()


def test_only_series_without_labels_exist_from_the_start():
    source = metrics()
    source.count_failure("cancelled", 0)

    assert set(samples(source)) >= {spec.name for spec in SPECS if not spec.labels and spec.kind != "histogram"}
    assert not [name for name in samples(source) if "{" in name and "{le=" not in name]


def test_help_names_the_unit():
    text = metrics().to_text().decode()

    assert "# HELP tgi_request_duration From call to answer. (seconds)\n" in text
    assert "# HELP tgi_request_count Generate and GenerateStream calls. (calls)\n" in text
    assert "# HELP tgi_request_count_total Generate and GenerateStream calls. (calls)\n" in text


def test_the_servers_gauges_are_read_at_each_scrape():
    source = metrics()
    calls = ["one"]
    source.read_state(
        num_calls=lambda: len(calls),
        num_permits=lambda: 3,
        num_bytes_held=lambda: 4,
        num_unread=lambda: 5,
        is_ready=lambda: False,
        is_draining=lambda: True,
        max_permits=9,
    )
    calls.append("two")

    expected = {
        "calls_in_flight": 2,
        "permits_held": 3,
        "max_concurrent_requests": 9,
        "bytes_held": 4,
        "calls_unread": 5,
        "ready": 0,
        "draining": 1,
    }
    assert {f"tgi_{name}": value for name, value in expected.items()}.items() <= samples(source).items()


def test_each_scrape_shows_what_every_living_process_uses():
    source = metrics()
    source.read_processes(lambda: {"frontend": os.getpid(), "shard-0": NO_PROCESS})
    before = samples(source)
    sum(range(10**6))  # takes longer than the kernel's unit of CPU time

    after = samples(source)

    assert not [name for name in after if "shard-0" in name]
    of_it = "{process=frontend}"
    assert after[f"tgi_process_resident_memory_bytes{of_it}"] > 10e6
    assert after[f"tgi_process_start_time_seconds{of_it}"] == pytest.approx(psutil.Process().create_time())
    cpu = f"tgi_process_cpu_seconds_total{of_it}"
    used_s = sum(psutil.Process().cpu_times()[:2])
    assert 0 < before[cpu] < after[cpu] <= used_s + 0.001  # of rounding


def test_every_name_has_the_prefix_and_appears_once():
    names = [spec.name for spec in SPECS]

    assert all(name.startswith("tgi_") for name in names)
    assert len(set(names)) == len(names)


def test_two_servers_in_one_process_count_separately():
    one, two = metrics(), metrics()

    one.count_call("stream", 1)

    assert samples(one)["tgi_request_input_count"] == 1
    assert samples(two)["tgi_request_input_count"] == 0


def test_durations_have_the_original_buckets():
    source = metrics()
    source.observe_queued(1.0)

    bounds = [0.0001]  # the original multiplies in this order, and its last digits name the series
    for _ in range(35):
        bounds.append(bounds[-1] * 1.5)
    assert list(DURATION_BUCKETS) == bounds[1:]
    assert f"{bounds[-1]:.3f}" == "145.611"
    assert len(buckets(source, "tgi_request_queue_duration")) == 36  # and infinity


def test_lengths_have_64_steps_up_to_the_servers_limits():
    source = metrics()
    source.use_limits(max_sequence_length=640, max_new_tokens=64, num_blocks=8)

    assert buckets(source, "tgi_request_input_length")[:2] == [10, 20]
    assert buckets(source, "tgi_request_total_tokens")[-2] == 640
    assert buckets(source, "tgi_request_generated_tokens")[-2] == 64
    assert samples(source)["tgi_kv_blocks_total"] == 8


@pytest.mark.parametrize("name", ["tgi_request_raw_input_length", "tgi_batch_next_tokens"])
def test_unlimited_sizes_have_buckets_of_powers_of_two(name):
    assert buckets(metrics(), name) == [*(2.0**k for k in range(20)), float("inf")]


def test_each_batch_size_has_a_bucket():
    source = metrics()
    source.observe_step(StepStats(decode_rows=2), processing_s=0.0)

    assert buckets(source, "tgi_batch_inference_batch_size")[:3] == [1, 2, 3]


def test_a_mixed_step_counts_under_both_methods_with_the_rows_of_each():
    source = metrics()

    stats = StepStats(
        prefill_rows=1, decode_rows=2, prefill_tokens=30, num_started=1, plan_s=0.0625, step_s=0.5, forward_s=0.25
    )
    source.observe_step(stats, processing_s=0.125)

    found = samples(source)
    for method, rows in (("prefill", 1), ("next_token", 2)):
        assert found[f"tgi_batch_inference_count{{method={method}}}"] == 1
        assert found[f"tgi_batch_inference_success{{method={method}}}"] == 1
        assert found[f"tgi_batch_inference_batch_size_sum{{method={method}}}"] == rows
        assert found[f"tgi_batch_inference_duration_sum{{makeup=single_only,method={method}}}"] == 0.5
        assert found[f"tgi_batch_inference_forward_duration_sum{{makeup=single_only,method={method}}}"] == 0.25
        assert found[f"tgi_batch_inference_tokproc_duration_sum{{makeup=single_only,method={method}}}"] == 0.125
    assert found["tgi_batch_next_tokens_sum"] == 30
    assert found["tgi_batch_concatenation_count"] == 1
    assert (found["tgi_step_scheduler_duration_sum"], found["tgi_step_scheduler_duration_count"]) == (0.0625, 1)
    assert (found["tgi_step_device_duration_sum"], found["tgi_step_device_duration_count"]) == (0.25, 1)


def test_a_step_without_rows_only_updates_gauges():
    source = metrics()

    source.observe_step(
        StepStats(num_waiting=3, num_running=2, running_tokens=7, remaining_tokens=9, used_blocks=4), processing_s=0.0
    )

    found = samples(source)
    assert not any(name.startswith("tgi_batch_inference_count") for name in found)
    assert found["tgi_step_device_duration_count"] == 0
    assert {
        "tgi_queue_size": 3,
        "tgi_batch_current_size": 2,
        "tgi_batch_input_tokens": 7,
        "tgi_batch_max_remaining_tokens": 9,
        "tgi_kv_blocks_used": 4,
    }.items() <= found.items()


def test_a_step_that_ran_out_of_memory_is_a_failure():
    source = metrics()

    source.observe_step(StepStats(prefill_rows=1, out_of_memory=True), processing_s=0.0)

    found = samples(source)
    assert found["tgi_batch_inference_failure{method=prefill,reason=oom}"] == 1
    assert "tgi_batch_inference_success{method=prefill}" not in found
    assert found["tgi_step_device_duration_count"] == 0


def test_a_lost_engine_counts_as_a_failed_step():
    source = metrics()

    source.count_lost_connection()

    found = samples(source)
    assert found["tgi_batch_inference_count{method=next_token}"] == 1
    assert found["tgi_batch_inference_failure{method=next_token,reason=connection}"] == 1


def test_an_answer_is_counted_by_reason_and_kind():
    source = metrics()

    source.observe_answer(
        kind="batch", stop_reason="EOS_TOKEN", num_input=5, num_generated=4, total_s=2.0, inference_s=1.0
    )

    found = samples(source)
    assert found["tgi_request_success{kind=batch,stop_reason=EOS_TOKEN}"] == 1
    assert found["tgi_request_total_tokens_sum"] == 9
    assert found["tgi_request_mean_time_per_token_duration_sum"] == 0.25


def test_an_answer_that_never_ran_has_no_inference_time():
    source = metrics()

    source.observe_answer(
        kind="single", stop_reason="TIME_LIMIT", num_input=5, num_generated=0, total_s=2.0, inference_s=None
    )

    assert samples(source)["tgi_request_inference_duration_count"] == 0


@pytest.mark.parametrize("gap_s", [0.0, DURATION_BUCKETS[0], 0.3, 1000.0])
def test_equal_amounts_count_the_same_together_as_one_by_one(gap_s):
    together, one_by_one = metrics(), metrics()

    together.observe_further_tokens(gap_s, 2)
    one_by_one._histogram("tgi_inter_token_duration").observe(gap_s)
    one_by_one._histogram("tgi_inter_token_duration").observe(gap_s)

    assert samples(together) == samples(one_by_one)
