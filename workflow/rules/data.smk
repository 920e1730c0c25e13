# Archives, data sets and backbones. Rules depend on the small sidecars, not on the big files.


def right_file(wildcards):
    """What tells the right file of an archive: of some no sha256 is known."""
    archive = SUITE.archives.get(wildcards.archive, {})
    told = {key: archive.get(key) for key in ("size", "sha256", "md5", "accept")}
    return fingerprint(told | {key: archive[key] for key in ("sha1", "sha384") if archive.get(key)})


rule fetch:
    output:
        f"{DATA}/archives/{{archive}}.json",
    params:
        file=right_file,
    log:
        "logs/fetch/{archive}.log",
    benchmark:
        "logs/fetch/{archive}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu_share=0,
    priority: 20
    shell:
        "python -m fcn fetch {wildcards.archive} {SUITE_OPTION} {DATA_OPTION} {MIRROR_OPTION} > {log} 2>&1"


rule extract:
    input:
        f"{DATA}/archives/{{archive}}.json",
    output:
        f"{DATA}/extracted/{{archive}}.json",
    log:
        "logs/extract/{archive}.log",
    benchmark:
        "logs/extract/{archive}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu_share=0,
    priority: 20
    shell:
        "python -m fcn extract {wildcards.archive} {DATA_OPTION} > {log} 2>&1"


def sources_of(wildcards):
    """What a data set is made of: its archives, and the lists that lie outside of them."""
    known("data set", SUITE.datasets, wildcards.dataset)
    archives = [f"{DATA}/{SUITE.sidecar(archive)}" for archive in SUITE.archives_of(wildcards.dataset)]
    return archives + SUITE.lists_of(wildcards.dataset)


rule prepare:
    input:
        sources_of,
    output:
        f"{DATA}/prepared/{{dataset}}/dataset.json",
    params:
        definition=lambda w: source_hash(SUITE.datasets[w.dataset]),
    log:
        "logs/prepare/{dataset}.log",
    benchmark:
        "logs/prepare/{dataset}.tsv"
    conda:
        "../../environment.yml"
    threads: 4
    resources:
        gpu_share=0,
    priority: 20
    shell:
        "python -m fcn prepare {wildcards.dataset} {SUITE_OPTION} {DATA_OPTION} "
        "--threads {threads} > {log} 2>&1"


def archive_of_backbone(wildcards):
    definition = known("backbone", SUITE.backbones, wildcards.backbone)
    return [archive_json(definition["archive"])] if "archive" in definition else []


rule backbone:
    input:
        archive_of_backbone,
    output:
        f"{DATA}/backbones/{{backbone}}/backbone.json",
    params:
        definition=lambda w: json.dumps(SUITE.backbones[w.backbone], sort_keys=True),
    log:
        "logs/backbone/{backbone}.log",
    benchmark:
        "logs/backbone/{backbone}.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu_share=0,
    priority: 20
    shell:
        "python -m fcn backbone {wildcards.backbone} {SUITE_OPTION} {DATA_OPTION} "
        "--threads {threads} > {log} 2>&1"
