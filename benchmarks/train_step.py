"""Compares one training step of the project with timm and PyTorch, in alternating rounds:

    python benchmarks/train_step.py [--out=FILE.jsonl] [--sizes=128:64,224:32] [--rounds=5]
        [--model=vit_tiny_patch16_224]

A resident batch, float32, no augmentation, no Gabor bank, each program in its own process. Ours:
forward, backward, clipping, AdamW and EMA, with the guard against non-finite steps. The peer's: the
same without EMA and guard, which favours it. CPU seconds (of all threads, divided by the cores) are
printed beside wall-clock times: they are meaningful on a machine with other load too.
`mnv4_jax.main` keeps freed memory in the process (memory.py), so ours does here; PyTorch is timed
with its defaults in both layouts, and also with memory kept.
"""

import argparse
import functools

import rounds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mobilenetv4_conv_small")
    parser.add_argument("--sizes", default="128:64,224:32", help="px:batch, ...")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=10, help="steps in a round")
    parser.add_argument("--pure", action="store_true", help="ours without the C++ convolutions too")
    parser.add_argument("--out", default="")
    args = parser.parse_args()
    print(rounds.HEADER)
    for pair in args.sizes.split(","):
        size, batch = map(int, pair.split(":"))
        ours, peer = (functools.partial(f, args.model, batch, size) for f in (jax_step, torch_step))
        channels_last = functools.partial(peer, channels_last=True)
        contenders = {"mnv4_jax": functools.partial(rounds.kept, ours)}
        if args.pure:
            pure = functools.partial(ours, pure=True)
            contenders["mnv4_jax, pure JAX"] = functools.partial(rounds.kept, pure)
        contenders |= {
            "PyTorch": peer,
            "PyTorch channels_last": channels_last,
            f"PyTorch channels_last{rounds.KEPT}": functools.partial(rounds.kept, channels_last),
        }
        times = rounds.alternate(contenders, rounds=args.rounds, repeats=args.repeats)
        rounds.print_rows(times, size=size, batch=batch, out=args.out)


def jax_step(model, batch, size, pure=False):
    import jax
    from steps import config_for, make_step, random_batch

    from mnv4_jax.ops import conv

    config = config_for(batch, size, model=model)
    compiled, state, _ = make_step(config, conv.PURE_CPU if pure else None)
    images, box = random_batch(config), [state]

    def run():
        box[0], metrics = compiled(box[0], images)
        jax.block_until_ready((box[0], metrics))

    return run


def torch_step(name, batch, size, channels_last=False):
    import timm
    import torch
    from steps import sized

    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = timm.create_model(name, num_classes=2, drop_rate=0.2, **sized(name, size)).train()
    model = model.to(memory_format=layout)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    images = torch.rand(batch, 3, size, size).to(memory_format=layout)
    labels = torch.randint(0, 2, (batch,))

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(images), labels, label_smoothing=0.05)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return run


if __name__ == "__main__":
    main()
