# Train, score and time each run of the suite. `gpu` is what a cluster is asked for; `gpu_share` is the
# part of this machine's GPUs that a job takes, so that each GPU has one job (profiles/default).


def trained(folder):
    """A trained net: the weights are made again where they are missed, and otherwise decide nothing."""
    return [f"{folder}/train.json", ancient(f"{folder}/model.safetensors")]


def start_of(run, seed):
    """The weights that training starts from, or their sidecar."""
    if run.parents:
        return [path for parent in run.parents.values() for path in trained(f"results/{parent}/seed{seed}")]
    if run.backbone:
        path = f"{DATA}/backbones/{run.backbone}/backbone.json"
        remake_unless(path, definition=fingerprint(SUITE.backbones[run.backbone]))
        return [path]
    if run.released:
        return [archive_json(SUITE.backbones[run.released]["archive"])]
    return []


def folder_of(wildcards):
    return f"results/{wildcards.dataset}/{wildcards.run}/seed{wildcards.seed}"


def train_input(wildcards):
    run = run_of(wildcards)
    remake_unless(f"{folder_of(wildcards)}/train.json", config_hash=run.hash)
    return [prepared(name) for name in sorted(run.datasets)] + start_of(run, wildcards.seed)


rule train:
    input:
        train_input,
    output:
        "results/{dataset}/{run}/seed{seed}/train.json",
        "results/{dataset}/{run}/seed{seed}/model.safetensors",
        "results/{dataset}/{run}/seed{seed}/loss.csv",
        "results/{dataset}/{run}/seed{seed}/validation.csv",
    params:
        config=lambda w: json.dumps(run_of(w).config, sort_keys=True),
    log:
        "logs/train/{dataset}/{run}/seed{seed}.log",
    benchmark:
        "logs/train/{dataset}/{run}/seed{seed}.tsv"
    conda:
        "../../environment.yml"
    threads: SUITE.threads
    resources:
        gpu=1,
        gpu_share=SHARE,
    priority: 10
    shell:
        "python -m fcn train {wildcards.dataset}/{wildcards.run} --seed {wildcards.seed} {RUN_OPTION} "
        "{DATA_OPTION} --device {config[device]} --threads {threads} > {log} 2>&1"


def evaluate_input(wildcards):
    run, folder = run_of(wildcards), folder_of(wildcards)
    record = remake_unless(f"{folder}/train.json", config_hash=run.hash)
    weights = {key: record[key] for key in ["weights_sha256"] if key in record}
    remake_unless(f"{folder}/metrics.json", config_hash=run.hash, **weights)
    return [*trained(folder), prepared(wildcards.dataset)]


rule evaluate:
    input:
        evaluate_input,
    output:
        "results/{dataset}/{run}/seed{seed}/metrics.json",
        "results/{dataset}/{run}/seed{seed}/per_image.npz",
        "results/{dataset}/{run}/seed{seed}/predictions.json.gz",
    params:
        split=lambda w: run_of(w).split,
    log:
        "logs/evaluate/{dataset}/{run}/seed{seed}.log",
    benchmark:
        "logs/evaluate/{dataset}/{run}/seed{seed}.tsv"
    conda:
        "../../environment.yml"
    threads: SUITE.threads
    resources:
        gpu=1,
        gpu_share=SHARE,
    priority: 10
    shell:
        "python -m fcn evaluate {wildcards.dataset}/{wildcards.run} --seed {wildcards.seed} {RUN_OPTION} "
        "{DATA_OPTION} --device {config[device]} --threads {threads} > {log} 2>&1"


def time_input(wildcards):
    remake_unless(f"{folder_of(wildcards)}/timing.json", timed=run_of(wildcards).timed)
    return prepared(wildcards.dataset)


rule time:
    # All cores and all GPUs: nothing runs beside a measurement on this machine.
    input:
        time_input,
    output:
        "results/{dataset}/{run}/seed{seed}/timing.json",
    params:
        timed=lambda w: run_of(w).timed,
    log:
        "logs/time/{dataset}/{run}/seed{seed}.log",
    benchmark:
        "logs/time/{dataset}/{run}/seed{seed}.tsv"
    conda:
        "../../environment.yml"
    threads: ALL_CORES
    resources:
        gpu=1,
        gpu_share=SHARES if GPUS else 0,
    shell:
        "python -m fcn time {wildcards.dataset}/{wildcards.run} --seed {wildcards.seed} {RUN_OPTION} "
        "{DATA_OPTION} --device {config[device]} --threads {threads} > {log} 2>&1"


def bound_of(wildcards):
    return known("data set under bounds", {bound["dataset"]: bound for bound in SUITE.bounds}, wildcards.dataset)


def bound_options(wildcards):
    """Where the labels come from, if not from the prepared data set."""
    bound = bound_of(wildcards)
    if "labels" not in bound:
        return ""
    definition = SUITE.datasets[bound["dataset"]]
    classes = definition.get("classes")
    if not isinstance(classes, list):
        raise WorkflowError(f"{SUITE.path}: bounds of {bound['labels']}: {bound['dataset']} has no list of `classes`.")
    return f"--labels {quote(bound['labels'])} --classes {len(classes)} --void {definition.get('void', 255)}"


def bounds_input(wildcards):
    bound = bound_of(wildcards)
    remake_unless(f"results/{wildcards.dataset}/bounds.json", split=bound["split"])
    return bound.get("labels", prepared(wildcards.dataset))


rule upper_bounds:
    input:
        bounds_input,
    output:
        "results/{dataset}/bounds.json",
    params:
        split=lambda w: bound_of(w)["split"],
        labels=bound_options,
    log:
        "logs/bounds/{dataset}.log",
    benchmark:
        "logs/bounds/{dataset}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu_share=0,
    shell:
        "python -m fcn bounds {wildcards.dataset} {params.split} {params.labels} {DATA_OPTION} > {log} 2>&1"


rule architecture:
    output:
        "results/architecture.json",
    params:
        nets=fingerprint([SUITE.nets, [[run.id, run.config["net"], run.labels] for run in SUITE.runs.values()]]),
        classes=fingerprint([SUITE.datasets[run.dataset].get("classes") for run in SUITE.runs.values()]),
    log:
        "logs/architecture.log",
    benchmark:
        "logs/architecture.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu_share=0,
    shell:
        "python -m fcn architecture {RUNS_OPTION} > {log} 2>&1"
