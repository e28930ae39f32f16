"""What a server counts, for Prometheus to read at /metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

MOST_PER_PASS = 8  # tokens of an answer that a pass yields; more are counted together
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "keras_mtp_requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "keras_mtp_request_seconds",
            "From a request to the end of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.first_token_seconds = Histogram(
            "keras_mtp_first_token_seconds",
            "From a prompt's coming to its first token.",
            buckets=SECONDS,
            registry=registry,
        )
        self.prompt_tokens = Counter("keras_mtp_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.new_tokens = Counter("keras_mtp_new_tokens", "Tokens of answers.", registry=registry)
        self.tokens_per_pass = Histogram(
            "keras_mtp_tokens_per_pass",
            "New tokens of an answer by a pass of the model; its mean is _sum / _count.",
            buckets=range(1, MOST_PER_PASS + 1),
            registry=registry,
        )
        self.passes = Counter(
            "keras_mtp_passes", "Passes of the model over a batch.", ["drafts"], registry=registry
        )
        self.running = Gauge("keras_mtp_running", "Answers being given.", registry=registry)
        self.waiting = Gauge("keras_mtp_waiting", "Answers that wait for a place.", registry=registry)
        self.refused = Counter(
            "keras_mtp_refused", "Requests refused since too many waited.", registry=registry
        )
        self.left = Counter("keras_mtp_left", "Answers that nobody waited for any more.", registry=registry)

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self.registry)
