"""Traces with OpenTelemetry: a span opened in an eager function has its caller's span as parent.

An eager function runs in a copy of its caller's context, and that is where OpenTelemetry keeps the current
span. So there is nothing to set up, from whichever thread or loop the call comes.

Run it: pip install opentelemetry-sdk && python tests/recipes/tracing.py
"""

import asyncio
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from eager_async import eager

# In production: a BatchSpanProcessor and an exporter that sends spans to your collector.
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer(__name__)


@eager
async def query(table: str) -> int:
    """Count the rows of a table: here, wait a little."""
    with tracer.start_as_current_span(f"query {table}"):
        await asyncio.sleep(0.05)
        return len(table)


@eager
async def report(customer: str) -> int:
    """Make two queries at a time. Their spans are children of this one's, as eager functions call them."""
    with tracer.start_as_current_span(f"report {customer}"):
        return sum(await asyncio.gather(query("orders"), query("payments")))


def handle_request(number: int) -> list[int]:
    """What a plain view does."""
    with tracer.start_as_current_span(f"request {number}"):
        reports = [report("Ada"), report("Bob")]
        return [task.result() for task in reports]


def tree(spans: Sequence[ReadableSpan], parent: int | None = None, depth: int = 0) -> str:
    """Draw spans under their parents, by name."""
    children = [span for span in spans if (span.parent.span_id if span.parent else None) == parent]
    return "".join(
        f"{'  ' * depth}{span.name}\n" + tree(spans, span.context.span_id, depth + 1)
        for span in sorted(children, key=lambda span: span.name)
    )


if __name__ == "__main__":
    handle_request(1)
    handle_request(2)
    print(tree(exporter.get_finished_spans()), end="")
