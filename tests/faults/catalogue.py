# ruff: noqa: E501 - a fault is a line of code, and lines of code are long
"""Deliberate faults: each is one line of the code made wrong, and the tests that should notice.

Faults of every kind that has once gone unseen, and others for each package.
"""

from typing import NamedTuple

_T = "tests/mnv4_jax/training"
AUGMENT, DAMAGE = f"{_T}/test_augment.py", f"{_T}/test_damage.py"
PICTURES = f"{_T}/test_pictures.py"
JPEG, RESAMPLE = "tests/mnv4_jax/ops/test_jpeg.py", "tests/mnv4_jax/ops/test_resample.py"
STEP, LOOP, CHECKPOINT = f"{_T}/test_step.py", f"{_T}/test_loop.py", f"{_T}/test_checkpoint.py"
EFFECTS, DIGESTS = STEP, LOOP
RAW, CONVERT = "tests/mnv4_jax/test_raw.py", "tests/mnv4_jax/test_convert.py"
PREDICT, EVALUATE = "tests/mnv4_jax/test_predict.py", "tests/mnv4_jax/test_evaluate.py"
BLENDING = "tests/input_pipeline/test_blending.py"
ONE_CLASS = "tests/mnv4_jax/report/test_one_class.py"
ROBUSTNESS = "tests/mnv4_jax/report/test_robustness.py"
_I = "tests/input_pipeline"
CLI, TRANSFORMS, BATCHES = f"{_I}/test_cli.py", f"{_I}/test_transforms.py", f"{_I}/test_batches.py"
SLOTS, GATHER = f"{_I}/test_slots.py", f"{_I}/test_gather.py"
PREPARE, LEAKS = f"{_I}/test_prepare.py", f"{_I}/prepared/test_leaks.py"
SOURCES, LISTING, DECODE = f"{_I}/test_sources.py", f"{_I}/test_listing.py", f"{_I}/test_decode.py"
_M = "tests/mnv4_jax/measure"
METRICS, CALIBRATION = f"{_M}/test_metrics.py", f"{_M}/test_calibration.py"
CORRUPTIONS, AUDIT = f"{_M}/test_corruptions.py", f"{_M}/test_audit.py"
FOLDED = "tests/mnv4_jax/models/test_folded.py"
LAYERS, GABOR = "tests/mnv4_jax/models/test_layers.py", "tests/mnv4_jax/models/test_gabor.py"
INIT_FROM = "tests/mnv4_jax/models/test_init_from.py"
_LOGITS = "tests/mnv4_jax/models/test_mobilenetv4.py::test_logits_are_timms"
HYBRID = f"{_LOGITS}[mobilenetv4_hybrid_medium]"
EXPLAIN = "tests/mnv4_jax/detector/test_explain.py"
CONFIG = "tests/mnv4_jax/test_config.py"
_R = "tests/mnv4_jax/runtime"


class Fault(NamedTuple):
    """`old`, which stands once in `file`, becomes `new`; one of `tests` should fail."""

    kind: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _of(file: str, *faults: tuple) -> list[Fault]:
    return [Fault(kind, file, old, new, tuple(tests)) for kind, old, new, *tests in faults]


FAULTS = [
    *_of(
        "mnv4_jax/training/step.py",
        ("augmentation not called", "views = {\"image\": vary(images, batch[\"position\"], config)}", "views = {\"image\": images}", EFFECTS),
        ("every picture augmented alike", "views = {\"image\": vary(images, batch[\"position\"], config)}", "views = {\"image\": vary(images, 0 * batch[\"position\"], config)}", EFFECTS),
        ("the guard deaf to the gradient", "finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)", "finite = jnp.isfinite(loss)", EFFECTS),
        ("the guard deaf to the loss and the gradient", "finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)", "finite = jnp.bool_(True)", f"{STEP}::test_a_non_finite_loss_changes_nothing_but_the_counters"),
        ("the average never moves", "e + (1 - decay) * (w - e)", "e + 0 * (1 - decay) * (w - e)", EFFECTS),
        ("the average is the weights", "e + (1 - decay) * (w - e)", "e + (w - e)", EFFECTS),
        ("bad steps count for the average's ramp", "ema_decay(state.step - state.bad_steps,", "ema_decay(state.step + 5,", EFFECTS),
        ("one dropout key for all steps", "jax.random.fold_in(jax.random.key(config.seed + 1), state.step)", "jax.random.key(config.seed + 1)", EFFECTS),
        ("local statistics not averaged", "return *jax.lax.pmean((loss, grads, stats), \"data\"), logits", "return *jax.lax.pmean((loss, grads), \"data\"), stats, logits", EFFECTS),
        ("local gradients added", "return *jax.lax.pmean((loss, grads, stats), \"data\"), logits", "return jax.lax.pmean(loss, \"data\"), jax.lax.psum(grads, \"data\"), jax.lax.pmean(stats, \"data\"), logits", f"{STEP}::test_local_batch_norm_averages_gradients_rather_than_adding_them"),
        ("bad steps in a row never end", "bad_in_a_row=(state.bad_in_a_row + 1) * bad,", "bad_in_a_row=state.bad_in_a_row + bad,", f"{STEP}::test_a_non_finite_loss_changes_nothing_but_the_counters"),
        ("the optimizer's state kept from before", "opt_state=keep(opt_state, state.opt_state)", "opt_state=state.opt_state", EFFECTS),
        ("statistics of training not kept", "optax.apply_updates(params, updates) | packing.pack({\"stats\": stats})", "optax.apply_updates(params, updates) | {\"stats\": state.weights[\"stats\"]}", EFFECTS),
    ),
    *_of(
        "mnv4_jax/training/objectives.py",
        ("label smoothing ignored", "optax.smooth_labels(hot, label_smoothing)", "hot", f"{EFFECTS}::test_the_loss_is_the_cross_entropy_with_smoothed_labels"),
        ("labels of the loss swapped", "jax.nn.one_hot(labels, 2,", "jax.nn.one_hot(1 - labels, 2,", f"{EFFECTS}::test_the_loss_is_the_cross_entropy_with_smoothed_labels"),
    ),
    *_of(
        "mnv4_jax/training/train_log.py",
        ("the learning rate of the next step", "self._learning_rates[done - 1]", "self._learning_rates[min(done, len(self._learning_rates) - 1)]", LOOP),
    ),
    *_of(
        "mnv4_jax/training/augment.py",
        ("brightness off", "image.dtype, -1, 1) * config.brightness", "image.dtype, -1, 1) * 0", AUGMENT),
        ("brightness only upwards", "jax.random.uniform(brightness, (), image.dtype, -1, 1)", "jax.random.uniform(brightness, (), image.dtype, 0, 1)", AUGMENT),
        ("contrast twice as strong", "image.dtype, -1, 1) * config.contrast", "image.dtype, -1, 1) * 2 * config.contrast", AUGMENT),
        ("one gamma for all", "jax.random.fold_in(key, 8), (), image", "jax.random.key(8), (), image", AUGMENT),
        ("saturation off", "image.dtype, -1, 1) * config.saturation", "image.dtype, -1, 1) * 0", AUGMENT),
        ("noise off", "image + strength * _piece(", "image + 0 * _piece(", AUGMENT),
        ("the same noise for all", "start = (jnp.floor(top * shape[0]), jnp.floor(left * shape[1]), 0)", "start = (0, 0, 0)", AUGMENT),
        ("damage not called", "        images = damage(images, drawn, config)\n", "        pass\n", DAMAGE),
        ("noise always at full strength", "strength = jax.random.uniform(level, (), image.dtype) * config.noise", "strength = config.noise", AUGMENT),
        ("flip upside down", "dm_pix.flip_left_right(image)", "dm_pix.flip_up_down(image)", AUGMENT),
        ("flip never", "flipped = jax.random.bernoulli(flip, config.flip)", "flipped = False", AUGMENT),
        ("erase in black", "image.mean((0, 1)), image)", "0 * image.mean((0, 1)), image)", AUGMENT),
        ("pixels not clipped", "return jnp.clip(image, 0, 1)", "return image", AUGMENT),
    ),
    *_of(
        "mnv4_jax/training/damage.py",
        ("a draw that augmentation uses too", "jax.random.fold_in(key, 9)", "jax.random.fold_in(key, 1)", DAMAGE),
        ("blur off", "resample.gaussian(size, sigma * blur)", "resample.gaussian(size, 0 * sigma)", DAMAGE),
        ("every picture shrunk", "jnp.where(is_shrunk < data.downscale_prob,", "jnp.where(is_shrunk < 1,", DAMAGE),
        ("JPEG of one quality", "low + jnp.floor((high - low + 1) * quality)", "low + jnp.floor(0 * quality)", DAMAGE),
        ("every picture compressed", "is_compressed < data.jpeg_prob", "is_compressed < 1", DAMAGE),
    ),
    *_of(
        "mnv4_jax/ops/jpeg.py",
        ("the luma table for chroma", "of_chroma = table(_CHROMA, quality)", "of_chroma = table(LUMA, quality)", JPEG),
        ("halves to even", "jnp.floor(jnp.abs(shares) + 0.5)", "jnp.rint(jnp.abs(shares) + 0.2)", JPEG),
        ("no gradient", "values + jax.lax.stop_gradient(jnp.floor(values) - values)", "jnp.floor(values)", JPEG),
    ),
    *_of(
        "mnv4_jax/ops/resample.py",
        ("bicubic of Pillow (a = -0.5)", "((-0.75 * distance + 3.75) * distance - 6) * distance + 3", "((-0.5 * distance + 2.5) * distance - 4) * distance + 2", RESAMPLE),
        ("columns left as they are", "return jnp.einsum(\"blk,bikc->bilc\", columns, out.reshape(images.shape))", "return out.reshape(images.shape)", RESAMPLE),
    ),
    *_of(
        "mnv4_jax/training/pictures.py",
        ("the seed of the data ignored", "            seed=config.seed,\n", "            seed=1,\n", f"{LOOP}::test_the_batches_of_a_run_are_those_of_its_seed"),
        ("batches of the device begin anew", "self._batches = self._open(start=self._done, resident=True)", "self._batches = self._open(start=0, resident=True)", PICTURES),
        ("never moved to the device", "self._done > self._start and self._done % self._per_epoch == 0", "False", PICTURES),
    ),
    *_of(
        "mnv4_jax/training/optimizer.py",
        ("clipping ignored", "optax.clip_by_global_norm(clip) if clip else optax.identity(),", "optax.identity(),", EFFECTS),
        ("weight decay on everything", "name: name.startswith(\"decayed\") for", "name: True for", f"{STEP}::test_weight_decay_spares_biases_and_batch_norm"),
        ("weight decay ignored", "            config.train.weight_decay,\n", "            0.0,\n", f"{STEP}::test_weight_decay_spares_biases_and_batch_norm"),
        ("no warm-up", "warmup = min(round(config.train.warmup_epochs * steps_per_epoch), total_steps // 2)", "warmup = 0", f"{STEP}::test_schedule_warms_up_to_the_peak_and_ends_at_zero"),
        ("the average without its ramp", "jnp.minimum(decay, (1 + step) / (10 + step))", "decay + 0 * step", f"{STEP}::test_ema_ramps_up"),
    ),
    *_of(
        "mnv4_jax/training/loop.py",
        ('Validation scored with the weights as trained', 'self._validate(named.ema)', 'self._validate(named.weights)', LOOP,),
        ("Test scored with another checkpoint", "best = saved_lib.load(self.workdir)", "best = saved_lib.load(self.workdir, raw=True)", LOOP),
        ("a resumed run begins its data anew", "            start=self.done,\n", "            start=0,\n", f"{LOOP}::test_preempted_and_run_again_equals_an_uninterrupted_run"),
        ('preempted with status 0', '                    return EXIT_STATUS', '                    return 0', f'{LOOP}::test_preempted_and_run_again_equals_an_uninterrupted_run',),
        ('the calibration not kept', 'calibration=fitted,\n            metrics=metrics,', 'calibration=None,\n            metrics=metrics,', LOOP,),
            ),
    *_of(
        "mnv4_jax/training/digests.py",
        ("digests without the augmentation", "listed = sorted(zip(names, (key.tobytes().hex() for key in keys), strict=True))", "listed = sorted(names)", DIGESTS),
        ("digests without the pictures", "names = [self._ids[i] for i in rows[:, 0]]", "names = [\"\" for i in rows[:, 0]]", DIGESTS),
        ("digests in the order of rows", "listed = sorted(zip(names,", "listed = list(zip(names,", DIGESTS),
    ),
    *_of(
        "mnv4_jax/detector/saved.py",
        ("the checksum not looked at", "    check_crc32(item, weights, meta)\n", "", f"{CHECKPOINT}::test_a_detector_with_other_values_than_were_saved_is_not_loaded"),
        ("--raw loads the average", "item = \"weights\" if raw else \"ema\"", "item = \"ema\"", RAW),
        ("the weights as trained unasked", "item = \"weights\" if raw else \"ema\"", "item = \"weights\"", RAW),
        ("a calibration of other weights", "calibration=meta[\"calibration\"] if item == \"ema\" else None", "calibration=meta[\"calibration\"]", RAW),
        ("the newest for the best", "return sorted(newest_first, key=lambda p: -_auc(p))", "return newest_first", f"{CHECKPOINT}::test_a_path_means_the_best_or_the_step_it_names"),
        ("the worst for the best", "key=lambda p: -_auc(p))", "key=lambda p: _auc(p))", f"{CHECKPOINT}::test_a_path_means_the_best_or_the_step_it_names"),
    ),
    *_of(
        "mnv4_jax/training/checkpoint.py",
        ("a NaN AUC evicts the best", "metrics=None if math.isnan(auc) else {\"auc\": auc}", "metrics={\"auc\": auc}", f"{CHECKPOINT}::test_nan_auc_does_not_evict_the_best"),
        ("checksums not looked at on resuming", "            check_crc32(name, restored[name], restored.meta)", "            pass", f"{CHECKPOINT}::test_other_values_than_were_saved_are_damage"),
    ),
    *_of(
        "mnv4_jax/convert.py",
        ("convert --raw ignored", "saved.load(args.checkpoint, raw=args.raw)", "saved.load(args.checkpoint)", f"{RAW}::test_convert"),
        ("convert --input ignored", "stablehlo.stablehlo(detector, pixels=args.input)", "stablehlo.stablehlo(detector)", CONVERT),
        ('convert --quantize ignored (onnx)', '            contents = smaller\n', '            pass\n', f'{CONVERT}::test_quantize_and_input_say_what_onnx_is_written',),
        ("convert --input of ONNX ignored (onnx)", "onnx_export.export(to_torch(detector), pixels=args.input)", "onnx_export.export(to_torch(detector))", f"{CONVERT}::test_quantize_and_input_say_what_onnx_is_written"),
        ("the calibration lost on the way back", "        saved.save_calibration(folder, imported.calibration)", "        pass", f"{CONVERT}::test_to_torch_and_back_gives_the_same_checkpoint"),
    ),
    *_of(
        "mnv4_jax/models/mobilenetv4.py",
        ("attention without its factor", "return self.layer_scale(self.attn(self.norm(x, train=train), train=train))", "return self.attn(self.norm(x, train=train), train=train)", HYBRID),
        ("keys taken for values", "for y in (self.key(x, train=train), self.value(x, train=train))", "for y in (self.key(x, train=train), self.key(x, train=train))", HYBRID),
        ("a head's channels dealt out to all heads", "query = self.query(x, train=train).reshape(batch, height * columns, self.heads, -1)", "query = self.query(x, train=train).reshape(batch, height * columns, -1, self.heads).swapaxes(2, 3)", HYBRID),
    ),
    *_of(
        "mnv4_jax/evaluate.py",
        ("evaluate --raw ignored", "Detector(args.checkpoint, raw=args.raw)", "Detector(args.checkpoint)", f"{RAW}::test_evaluate"),
        ("NaN in the JSON", "contents = json.dumps(finite(facts | results[0].summary | others), indent=2)", "contents = json.dumps(facts | results[0].summary | others, indent=2)", ONE_CLASS),
    ),
    *_of(
        "mnv4_jax/predict.py",
        ("predict --raw ignored", "Detector(args.checkpoint, raw=args.raw)", "Detector(args.checkpoint)", f"{RAW}::test_predict"),
        ("the threshold itself is real", "\"fake\" if p_fake >= threshold else \"real\"", "\"fake\" if p_fake > threshold else \"real\"", f"{PREDICT}::test_a_picture_at_the_threshold_is_called_fake"),
        ("--threshold ignored", "threshold = thresholds.choose(args.threshold, detector.thresholds)", "threshold = 0.5", PREDICT),
        ("status 0 with unreadable pictures", "return 1 if unreadable else 0", "return 0", PREDICT),
        ("counts among the answers", "listing.describe(passed_over)])), file=sys.stderr)", "listing.describe(passed_over)])))", PREDICT),
    ),
    *_of(
        "mnv4_jax/detector/detector.py",
        ("the temperature ignored", "calibration.p_fake(scores.logits, self.temperature)", "calibration.p_fake(scores.logits)", RAW),
        ("tiny pictures are answered", "self.logits(source, least_px=self.least_px,", "self.logits(source, least_px=0,", f"{PREDICT}::test_too_small_or_one_colour_is_no_evidence"),
        ("a side of one px more", "return min(LEAST_PX, self.transform.size)", "return min(LEAST_PX, self.transform.size) + 1", f"{PREDICT}::test_too_small_or_one_colour_is_no_evidence"),
        ("grey pictures as colours of one", "image = np.repeat(image[:, :, None], 3, axis=2)", "image = np.dstack([image, 0 * image, 0 * image])", f"{PREDICT}::test_the_library_takes_grey_and_transparent_pictures"),
    ),
    *_of(
        "mnv4_jax/detector/scoring.py",
        ("padding counts as pictures", "order = np.flatnonzero(mask)", "order = np.flatnonzero(mask | True)", EVALUATE),
    ),
    *_of(
        "mnv4_jax/report/judge.py",
        ("intervals without groups", "metrics.rates_of(labels, called, groups)", "metrics.rates_of(labels, called)", EVALUATE),
        ("unreadable pictures not named", "\"unreadable\": unreadable,", "\"unreadable\": [],", EVALUATE),
        ("no_score not counted", "for i, why in scores.refused.items()],", "for i, why in ()],", f"{EVALUATE}::test_what_holds_no_evidence_is_counted_and_not_judged"),
        ("uncalibrated scores in the report", "p_fake = calibration.p_fake(scores.logits, detector.temperature)", "p_fake = calibration.p_fake(scores.logits)", EVALUATE),
    ),
    *_of(
        "mnv4_jax/report/one_class.py",
        ("precision of a missing class", "{\"accuracy\", \"recall_real\", \"log_loss\", \"brier\"}", "{\"accuracy\", \"recall_real\", \"log_loss\", \"brier\", \"precision_fake\"}", ONE_CLASS),
        ("groups of one class ignored", "metrics.metrics_with_intervals(labels, answers, groups)[\"recall_fake\"]", "metrics.metrics_with_intervals(labels, answers)[\"recall_fake\"]", ONE_CLASS),
    ),
    *_of(
        "mnv4_jax/report/robustness.py",
        ("false alarms among fakes", "alarms = called[labels == metrics.REAL]", "alarms = called[labels == metrics.FAKE]", ROBUSTNESS),
        ("undamaged pictures in the sweep", "return corrupt(pixels, kind, level, seed=self._picks[pick])", "return pixels", ROBUSTNESS),
    ),
    *_of(
        "mnv4_jax/measure/metrics.py",
        ("reals count as positive", "fake = np.asarray(labels)[order] == FAKE", "fake = np.asarray(labels)[order] == REAL", METRICS),
        ("ties favour the detector", "ends = np.append(np.flatnonzero(np.diff(z)), len(z) - 1)", "ends = np.arange(len(z))", METRICS),
        ("accuracy of strict answers", "called = z >= 0", "called = z > 1", METRICS),
        ("a point for an interval", "if parts and value in (0, 1):", "if False:", METRICS),
        ("90% intervals", "np.percentile(values, [2.5, 97.5])", "np.percentile(values, [5, 95])", METRICS),
        ("pictures drawn, not groups", "unit = np.arange(n) if groups is None else", "unit = np.arange(n) if True else", METRICS),
        ("EER without its chord", "share = np.where(span > 0, -gap[rows, left] / span, 0.0)", "share = 0.0 * span", METRICS),
    ),
    *_of(
        "mnv4_jax/measure/calibration.py",
        ("thresholds one picture too low", "real[int(rate * len(real))]", "real[min(int(rate * len(real)) + 1, len(real) - 1)]", CALIBRATION),
        ("temperature multiplied", "z = metrics.log_odds(logits) / temperature\n    return", "z = metrics.log_odds(logits) * temperature\n    return", CALIBRATION),
        ("certain where separable", "doubt = 1 / (np.bincount(labels, minlength=2)[labels] + 2)", "doubt = 0.0", CALIBRATION),
    ),
    *_of(
        "mnv4_jax/measure/corruptions.py",
        ("every picture the same noise", "np.random.default_rng(seed))", "np.random.default_rng(0))", CORRUPTIONS),
        ("gamma the other way", ") ** exponent", ") ** (1 / exponent)", CORRUPTIONS),
    ),
    *_of(
        "mnv4_jax/measure/audit.py",
        ("width for height", "len(data), jpeg_quality(data), width, height,", "len(data), jpeg_quality(data), height, width,", AUDIT),
        ("a digest without the contents", "whole.update(f\"{name}\\0{digest}\\n\"", "whole.update(f\"{name}\\0\\n\"", AUDIT),
    ),
    *_of(
        "mnv4_jax/models/layers.py",
        ("the biased variance remembered", "self._move(self.var, var * (n / max(n - 1, 1)))", "self._move(self.var, var)", LAYERS),
        ("momentum the other way round", "(1 - self.MOMENTUM) * running[...] + self.MOMENTUM * value", "self.MOMENTUM * running[...] + (1 - self.MOMENTUM) * value", LAYERS),
        ("dropout without its scale", "x.shape), x / (1 - rate), 0)", "x.shape), x, 0)", LAYERS),
    ),
    *_of(
        "mnv4_jax/models/folded.py",
        ("a shortcut that is forgotten", "first=i == 0, adds=adds)", "first=i == 0, adds=False)", FOLDED),
        ("the mean not folded in", "* factor, bias - mean * factor", "* factor, bias", FOLDED),
    ),
    *_of(
        "mnv4_jax/ops/vectors.h",
        ("a border that is left over from the picture before", "      std::fill_n(begin, row, 0.f);\n      continue;", "      continue;", FOLDED),
    ),
    *_of(
        "mnv4_jax/ops/network.cc",
        ("the share of the last thread lost", "rows : (i + 1) * rows / n;", "rows : i * rows / n + rows / n;", FOLDED),
        ("a mean of one position too many", "sum / (float)positions", "sum / (float)(positions + 1)", FOLDED),
    ),
    *_of(
        "mnv4_jax/ops/kernels.cc",
        ("the last row of a part left out", "std::min(m, (part + 1) * kPart);", "std::min(m, (part + 1) * kPart - 1);", "tests/mnv4_jax/ops/test_conv.py"),
        ("a kernel that is not turned round", "(s.kh * s.kw - 1 - tap) * s.c", "tap * s.c", "tests/mnv4_jax/ops/test_conv.py"),
    ),
    *_of(
        "mnv4_jax/ops/norm.py",
        ("a gradient as if the variance were constant", "dy * factor + y * slope - (factor * d_bias / n + slope * mean)", "dy * factor - factor * d_bias / n", "tests/mnv4_jax/ops/test_norm.py"),
    ),
    *_of(
        "mnv4_jax/ops/split.py",
        ("parts that overlap", "        start = end\n", "", "tests/mnv4_jax/ops/test_split.py"),
    ),
    *_of(
        "mnv4_jax/training/packing.py",
        ("a program that depends on the order of a set", "in sorted(vectors.keys() & set(labels))", "in vectors.keys() & set(labels)", STEP),
    ),
    *_of(
        "mnv4_jax/models/gabor.py",
        ("taps with a mean", "    kernels = kernels - jnp.mean(kernels, axis=(0, 1))\n", "", GABOR),
        ("zeros outside", "((0, 0), (pad, pad), (pad, pad), (0, 0)), mode=\"reflect\")", "((0, 0), (pad, pad), (pad, pad), (0, 0)))", GABOR),
        ("the real part for the magnitude", "y = jnp.sqrt(real**2 + imaginary**2 + 1e-12)", "y = real + 0 * imaginary", GABOR),
    ),
    *_of(
        "mnv4_jax/models/init_from.py",
        ("further channels start as copies", "return np.pad(given, ((0, 0), (0, 0), (0, ours - theirs), (0, 0)))", "return np.pad(given, ((0, 0), (0, 0), (0, ours - theirs), (0, 0)), mode=\"wrap\")", INIT_FROM),
        ("statistics start fresh", "new_stats = _copied(stats, source_stats, notes)", "new_stats = stats", INIT_FROM),
    ),
    *_of(
        "mnv4_jax/models/classifier.py",
        ("pixels not normalised", "x = (images - mean) / std", "x = images", GABOR),
    ),
    *_of(
        "mnv4_jax/detector/explain.py",
        ("a map of the magnitude", "return jnp.einsum(\"bhwc,bc->bhw\", features, weights).astype(jnp.float32)", "return jnp.abs(jnp.einsum(\"bhwc,bc->bhw\", features, weights)).astype(jnp.float32)", EXPLAIN),
    ),
    *_of(
        "input_pipeline/cli.py",
        ("Ctrl-C ends with status 0", "        status = 130\n", "        status = 0\n", CLI),
        ("a user's error ends with status 1", "_say(f\"error: {' '.join(str(error).split())}\")\n        status = 2", "_say(f\"error: {' '.join(str(error).split())}\")\n        status = 1", CLI),
    ),
    *_of(
        "input_pipeline/transforms.py",
        ("the middle one px to the side", "top, left = (height - side) // 2, (width - side) // 2", "top, left = (height - side) // 2, (width - side + 1) // 2", TRANSFORMS),
        ("scaled down without area", "how = cv2.INTER_AREA if shrink else cv2.INTER_CUBIC", "how = cv2.INTER_CUBIC", TRANSFORMS),
        ("the last crop never drawn", "room = sides - side + 1", "room = np.maximum(1, sides - side)", TRANSFORMS),
        ("zoom ignored", "np.rint(np.minimum(sides, transform.size) * zoom)", "np.rint(np.minimum(sides, transform.size) * 1.0)", TRANSFORMS),
        ("one-coloured pictures are scored", "ONE_COLOUR * _one_colour(seen)", "0", f"{PREDICT}::test_too_small_or_one_colour_is_no_evidence"),
        ("a colour in the sampled pixels is enough", "for part in (pixels[::16, ::16], pixels):", "for part in (pixels[::16, ::16],):", BATCHES, PREDICT),
    ),
    *_of(
        "input_pipeline/order.py",
        ("one order for all epochs", "np.random.Philox(key=[seed, 1 + epoch])", "np.random.Philox(key=[seed, 1])", BATCHES),
    ),
    *_of(
        "input_pipeline/slots.py",
        ("checksums not looked at", "zlib.crc32(self.pixels(index, side).data) == record[\"crc\"]", "True", SLOTS),
        ("changed files not noticed", "return bool(same) and", "return", SLOTS),
        ("one cache for mixtures of the same names", "for i in (0, len(source) // 2, len(source) - 1):", "for i in (0,):", SLOTS),
        ("the bound ignored", "if taken + needed <= most:", "if True:", SLOTS),
    ),
    *_of(
        "input_pipeline/gather.py",
        ("one row too low", "pixels[start:], (size, line)", "pixels[start + stride:], (size, line)", GATHER),
    ),
    *_of(
        "input_pipeline/batches.py",
        ("a picture without pixels on the device", "if self.resident:  # its pixels", "if False:  # its pixels", PICTURES),
        ("no WebP", "draws[:, order_lib.WEBP] < self.webp", "draws[:, order_lib.WEBP] < 0", BLENDING),
        ("WebP by another draw than the position's", "int((high - low + 1) * draws[row, order_lib.QUALITY])", "row % 30", BLENDING),
        ("labels of the pictures asked for", "np.where(made, 0, self.source.labels[indices]).astype(np.int32)", "np.where(made, 0, labels).astype(np.int32)", BATCHES),
        ("unreadable pictures are scored", "mask[row] = not refused[row]\n", "mask[row] = not refused[row]\n            mask[row] = True\n", BATCHES),
    ),
    *_of(
        "input_pipeline/decode.py",
        ("EXIF ignored", "return _upright(pixels, data) if has_exif else pixels", "return pixels", DECODE),
        ("transparency over black", "Image.new(\"RGBA\", image.size, \"white\")", "Image.new(\"RGBA\", image.size, \"black\")", DECODE),
        ("TIFF turned twice", "        image.load()  # raises where the file is cut short\n", "        image.getexif(); turned = image.getexif().get(_ORIENTATION, 1); image.load()\n        if turned != 1: return _rotate(to_rgb(image), turned)\n", DECODE),
        ("sixteen bits clipped", "if image.mode.startswith(\"I;16\"):", "if image.mode.startswith(\"I;17\"):", DECODE),
    ),
    *_of(
        "input_pipeline/listing.py",
        ("folders below passed over", "            elif entry.is_dir():\n                below.append(entry.path)\n", "            elif entry.is_dir():\n                pass\n", LISTING),
        ("nothing counted", "passed_over[os.path.splitext(name)[1].lower()] += 1", "pass", LISTING),
        ("the order of the disk", "return sorted(_walk(", "return list(_walk(", LISTING, SOURCES),
    ),
    *_of(
        "input_pipeline/sources.py",
        ("labels swapped", "labels += [label] * len(files)", "labels += [1 - label] * len(files)", SOURCES),
        ("groups by the last folder", "at = next(iter(below_a_split or classes), len(folders) - 1)", "at = len(folders) - 1", LISTING),
    ),
    *_of(
        "input_pipeline/prepared/builder.py",
        ("the label in a record flipped", "\"label\": int(split.source.labels[position]),", "\"label\": 1 - int(split.source.labels[position]),", PREPARE),
        ("the group in a record lost", "\"group\": groups[key] if groups else \"\",", "\"group\": \"\",", PREPARE),
    ),
    *_of(
        "input_pipeline/prepared/leak_report.py",
        ("deaf to a group in two splits", "if len(where) > 1),", "if len(where) > 2),", PREPARE),
        ('leaks within a split count', 'if others - {pictures[i].split}:', 'if others:', f"{PREPARE}::test_a_copy_within_one_split_is_no_leak",),
    ),
    *_of(
        "input_pipeline/prepared/leaks.py",
        ("near copies by the hash alone", "keep = correlation >= MIN_CORRELATION", "keep = correlation >= -2", LEAKS),
        ("one chunk of the hash not looked at", "for chunk in range(_CHUNKS):", "for chunk in range(_CHUNKS - 1):", LEAKS),
    ),
    *_of(
        "mnv4_jax/config.py",
        ("a share above 1 is taken", "if not 0 <= _get(config, field) <= 1:", "if not 0 <= _get(config, field) <= 9:", CONFIG),
        ("the demo's epochs over those given", "if \"train.epochs\" not in overrides:", "if True:", CONFIG),
    ),
    *_of(
        "mnv4_jax/runtime/preemption.py",
        ("SIGTERM not heard", "        self._told = True", "        pass", f"{_R}/test_preemption.py"),
    ),
    *_of(
        "mnv4_jax/runtime/line_file.py",
        ("lines in a bucket forgotten", "            self._text += _line(line)", "            self._text = _line(line)", f"{_R}/test_line_file.py"),
    ),
    *_of(
        "mnv4_jax/runtime/workdir_lock.py",
        ("a workdir held twice", "        lock.acquire()\n", "        pass\n", f"{_R}/test_workdir_lock.py"),
    ),
    *_of(
        "mnv4_jax/training/bad_images.py",
        ("damaged pictures without end", "if len(self._of_train) > self._limit:", "if False:", f"{LOOP}::test_too_many_damaged_pictures_stop_the_run"),
    ),
    *_of(
        "mnv4_jax/training/loop.py",
        ("divergence not noticed", "if self.log.bad_in_a_row >= self.config.train.max_bad_steps:", "if False:", f"{LOOP}::test_a_diverging_run_stops_with_its_last_checkpoint_intact"),
    ),
    *_of(
        "mnv4_jax/training/loop.py",
        ("an evaluation that a stop cut short forgotten", "evaluation_due=due and metrics is None,", "evaluation_due=False,", f"{LOOP}::test_a_stop_at_an_evaluation_is_obeyed_and_the_evaluation_made_up_for"),
        ("an evaluation made up for and not kept", "        self.checkpointer.add_results(self.done, new, metrics)\n", "", f"{LOOP}::test_a_stop_at_an_evaluation_is_obeyed_and_the_evaluation_made_up_for"),
    ),
    *_of(
        "mnv4_jax/detector/scoring.py",
        ("an evaluation deaf to a stop", "        if stop():\n", "        if False:\n", f"{LOOP}::test_a_stop_in_the_middle_of_an_evaluation_does_not_wait_for_its_end"),
    ),
    *_of(
        "mnv4_jax/runtime/compilation_cache.py",
        ("a cache that cannot be written to", "        jax.config.update(\"jax_enable_compilation_cache\", False)\n", "", f"{_R}/test_compilation_cache.py"),
    ),
    *_of(
        "mnv4_jax/convert.py",
        ("a loss beyond the bound is written (onnx)", "if lost and not args.force:", "if False:", f"{CONVERT}::test_float16_is_half_as_large_and_close_and_a_loss_is_refused_unless_forced"),
    ),
    *_of(
        "mnv4_jax/evaluate.py",
        ("one class refused", "open_source(data, args.split, one_class=True)", "open_source(data, args.split)", ONE_CLASS),
    ),
]  # fmt: skip
