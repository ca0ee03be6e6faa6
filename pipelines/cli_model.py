"""The model commands of `clipmill`: latents, training, sampling, export. Dependencies are imported on use."""

from pathlib import Path
from typing import Annotated

import typer

from clipmill.errors import UserError
from pipelines.cli_shared import EXIT_CODES, MODELS, PARTIAL, Address, NumCpus, TakeOver, console, location, say

app = typer.Typer()

Checkpoint = Annotated[
    Path, typer.Argument(help="Model folder, or a checkpoint file in the original SVD layout.", show_default=False)
]
PresetConfig = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file with settings that override the preset.", show_default=False),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting (group.key=value); repeatable.", show_default=False),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; defaults to cuda if available.", show_default=False)]


@app.command(epilog=EXIT_CODES, rich_help_panel=MODELS)
def cache_latents(
    data: Annotated[
        str,
        typer.Option(help="Shards of clips or images, their URL, or other data, as for train.", show_default=False),
    ],
    out: Annotated[str, typer.Option(help="Output folder or URL for the latent shards.", show_default=False)],
    stage: Annotated[str, typer.Option(help="Training stage whose frames and encoders to use.", show_default=False)],
    init: Annotated[Path, typer.Option(help="Model to take the autoencoder and encoder from.", show_default=False)],
    augmentations_per_clip: Annotated[
        int, typer.Option(min=1, help="Random draws of frames, frame rate and crop per clip.")
    ] = 1,
    config: PresetConfig = None,
    change: Changes = None,
    take_over: TakeOver = False,
    address: Address = None,
    num_cpus: NumCpus = None,
    device: Device = None,
) -> None:
    """Precompute latents and embeddings into shards that `clipmill train` reads instead of clips."""
    from pipelines.cache_latents import cache_latents as run
    from pipelines.train import resolve_stage

    chosen = resolve_stage(stage, config, change or [])
    done = run(
        chosen,
        data,
        out,
        init=init,
        augmentations_per_clip=augmentations_per_clip,
        take_over=take_over,
        address=address,
        num_cpus=num_cpus,
        device=device,
    )
    say(f"{done.samples:,} samples in {done.shards:,} shards, {done.bytes / 2**20:,.1f} MiB: {done.folder}")
    for key, reason in done.failed.items():
        say(f"skipped: {key}: {reason}")
    if done.failed:
        raise typer.Exit(PARTIAL)


@app.command(epilog=EXIT_CODES, rich_help_panel=MODELS)
def train(
    out: Annotated[
        str | None, typer.Option(help="Run folder or URL; rerun the same command to resume.", show_default=False)
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="Training stage, such as image-to-video or tiny-video.", show_default=False)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Folder, tar or glob of shards, or its URL; folder of videos; list (.jsonl, .csv) of paths.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Image shards for joint training, or their URL.", show_default=False)
    ] = None,
    init: Annotated[
        str | None, typer.Option(help="Model or finished run to initialize from, or its URL.", show_default=False)
    ] = None,
    config: PresetConfig = None,
    change: Changes = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML recipe of stages to train one after another.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print a cost estimate and exit.")] = False,
    gpus: Annotated[int, typer.Option(min=1, help="Number of GPUs to estimate for (--dry-run).")] = 1,
    ray_workers: Annotated[
        int | None,
        typer.Option(min=1, help="Number of Ray workers to train on; restarted on failure.", show_default=False),
    ] = None,
    take_over: TakeOver = False,
    address: Address = None,
    device: Device = None,
) -> None:
    """Train a stage, or resume it. Launch with torchrun to train on several GPUs.

    Ctrl-C and SIGTERM save a checkpoint before exiting; rerun the same command to resume from it.
    """
    if recipe is not None:
        stage_options = {
            "--stage": stage, "--data": data, "--images": images, "--init": init, "--config": config, "--set": change,
            "--ray-workers": ray_workers, "--address": address,
        }  # fmt: skip
        ignored = ", ".join(name for name, value in stage_options.items() if value)
        if ignored:
            raise UserError(f"--recipe cannot be combined with {ignored}: set these in the recipe file")
        folder = None if out is None else location(out)
        _train_recipe(recipe, folder, gpus=gpus if dry_run else None, device=device, take_over=take_over)
        return
    if stage is None:
        raise UserError("pass either --stage or --recipe")
    from pipelines import train as training
    from pipelines.render import estimate_table

    chosen = training.resolve_stage(stage, config, change or [])
    if dry_run:
        console().print(estimate_table(training.dry_run(chosen, gpus)))
        return
    if data is None or out is None:
        raise UserError("--stage requires --data (the shards to train on) and --out (the run folder)")
    folder, initial = location(out), None if init is None else location(init)
    model: Path | str
    if ray_workers is not None:
        from pipelines.train_on_ray import train_on_ray

        model = train_on_ray(
            chosen,
            data,
            folder,
            workers=ray_workers,
            images=images,
            init=initial,
            address=address,
            device=device,
            take_over=take_over,
        )
    else:
        model = training.train(chosen, data, folder, images=images, init=initial, device=device, take_over=take_over)
    say(f"trained: {model}")


def _train_recipe(
    recipe: Path, out: Path | str | None, *, gpus: int | None, device: str | None, take_over: bool
) -> None:
    """Train the stages of a recipe; with `gpus`, print the cost of each on that many GPUs instead."""
    from pipelines.recipe import read_recipe, train_recipe
    from pipelines.render import estimate_table
    from pipelines.train import dry_run

    if gpus is not None:
        for entry in read_recipe(recipe).stages:
            say(f"{entry.folder}: {entry.stage.description}")
            console().print(estimate_table(dry_run(entry.stage, gpus)))
        return
    if out is None:
        raise UserError("--recipe requires --out, the folder for its runs")
    for model in train_recipe(recipe, out, device=device, take_over=take_over):
        say(f"trained: {model}")


@app.command(epilog=EXIT_CODES, rich_help_panel=MODELS)
def sample(
    checkpoint: Checkpoint,
    out: Annotated[
        Path, typer.Option(help="Output video (.mp4); a contact sheet is written next to it (.png).")
    ] = Path("sample.mp4"),
    image: Annotated[
        Path | None, typer.Option(help="Conditioning image; center-cropped to the output size.", show_default=False)
    ] = None,
    last_image: Annotated[
        Path | None, typer.Option(help="Last frame (interpolation models).", show_default=False)
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Text prompt (text-to-video models).", show_default=False)] = None,
    elevation: Annotated[
        float | None, typer.Option(help="Camera elevation in degrees (multi-view models).", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Noise seed.")] = 0,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Number of frames; defaults to the model's.", show_default=False)
    ] = None,
    fps: Annotated[float, typer.Option(min=1, help="Frame rate: conditioning and output.")] = 7.0,
    motion: Annotated[float, typer.Option(min=0, max=255, help="Motion bucket id; higher is more motion.")] = 127.0,
    noise_augmentation: Annotated[
        float, typer.Option(min=0, help="Standard deviation of the noise added to the conditioning image.")
    ] = 0.02,
    steps: Annotated[int, typer.Option(min=1, help="Number of sampling steps.")] = 25,
    guidance: Annotated[
        str | None,
        typer.Option(
            help="Guidance scale, or FIRST:LAST to interpolate over the frames, such as 1.0:3.0.", show_default=False
        ),
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Output size, WIDTHxHEIGHT; defaults to the model's.", show_default=False)
    ] = None,
    decode_frames: Annotated[
        int | None, typer.Option(min=1, help="Frames to decode at once; lower it to save memory.", show_default=False)
    ] = None,
    lora: Annotated[Path | None, typer.Option(help="LoRA adapter to apply (.safetensors).", show_default=False)] = None,
    device: Device = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16; defaults to bfloat16 on cuda, float32 on cpu.", show_default=False
        ),
    ] = None,
) -> None:
    """Generate a video from an image, a prompt or two images, depending on the model's task."""
    from pipelines.sample import SampleRequest
    from pipelines.sample import sample as run

    request = SampleRequest(
        image=image,
        last_image=last_image,
        prompt=prompt,
        elevation=elevation,
        seed=seed,
        frames=frames,
        fps=fps,
        motion=motion,
        noise_augmentation=noise_augmentation,
        steps=steps,
        guidance=guidance,
        size=size,
        decode_frames=decode_frames,
        lora=lora,
        device=device,
        dtype=dtype,
    )
    video = run(checkpoint, out, request)
    say(
        f"{video.video}: {video.task}, {video.frames} frames of {video.width_px} x {video.height_px}, "
        f"{video.seconds:.1f} s\n{video.sheet}: contact sheet"
    )


@app.command(epilog=EXIT_CODES, rich_help_panel=MODELS)
def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="Output folder; must be new or empty.", show_default=False)],
    format: Annotated[
        str, typer.Option(help="diffusers (a pipeline folder) or original (one file in the SVD layout).")
    ] = "diffusers",
    dtype: Annotated[str, typer.Option(help="Weight dtype: float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Export a model for diffusers' StableVideoDiffusionPipeline, or in the original SVD layout."""
    from pipelines.export import export as run

    written = run(checkpoint, out, format=format, dtype=dtype)
    say(f"exported: {written}")
