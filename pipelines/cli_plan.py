"""`clipmill plan`."""

import json
from typing import Annotated

import typer

from pipelines.cli_shared import (
    DATASETS,
    EXIT_CODES,
    AsJson,
    ConfigFile,
    CpuPrice,
    GpuPrice,
    Inputs,
    StoragePrice,
    TokenInPrice,
    TokenOutPrice,
    Without,
    console,
    curate_config,
)

app = typer.Typer()


@app.command(epilog=EXIT_CODES, rich_help_panel=DATASETS)
def plan(
    inputs: Inputs,
    config: ConfigFile = None,
    without: Without = None,
    sample: Annotated[int, typer.Option(min=1, help="Number of inputs to run.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the random choice of inputs.")] = 0,
    cores: Annotated[
        int | None,
        typer.Option(min=1, help="CPU cores of the run; defaults to those of this machine.", show_default=False),
    ] = None,
    price_per_cpu_hour: CpuPrice = 0,
    price_per_gpu_hour: GpuPrice = 0,
    price_per_million_tokens_in: TokenInPrice = 0,
    price_per_million_tokens_out: TokenOutPrice = 0,
    price_per_gb_month: StoragePrice = 0,
    as_json: AsJson = False,
) -> None:
    """Estimate time, memory, storage and price of `clipmill curate` and `shard` from a sample of the inputs.

    The sample goes through the real scan and the models of the configuration on this machine; captioners behind an
    endpoint are asked as well. Only temporary files are written.
    """
    from pipelines.costs import Prices
    from pipelines.plan import plan as run
    from pipelines.render_plan import as_json as plain
    from pipelines.render_plan import print_plan

    prices = Prices(
        cpu_hour=price_per_cpu_hour,
        gpu_hour=price_per_gpu_hour,
        million_tokens_in=price_per_million_tokens_in,
        million_tokens_out=price_per_million_tokens_out,
        gb_month=price_per_gb_month,
    )
    result = run(inputs, curate_config(config, without), sample=sample, seed=seed, cores=cores, prices=prices)
    if as_json:
        print(json.dumps(plain(result)))
    else:
        print_plan(console(), result)
