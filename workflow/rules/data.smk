# Archives, data sets and backbones. Rules depend on the small sidecars, not on the big files.


rule fetch:
    output:
        f"{DATA}/archives/{{archive}}.json",
    params:
        digest=lambda w: SUITE.archives.get(w.archive, {}).get("sha256"),
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
        "python -m fcn fetch {wildcards.archive} {SUITE_OPTION} --data-dir '{DATA}' {MIRROR_OPTION} > {log} 2>&1"


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
        "python -m fcn extract {wildcards.archive} --data-dir '{DATA}' > {log} 2>&1"


rule prepare:
    input:
        lambda w: [f"{DATA}/{SUITE.sidecar(a)}" for a in SUITE.archives_of(w.dataset)],
    output:
        f"{DATA}/prepared/{{dataset}}/dataset.json",
    params:
        definition=lambda w: json.dumps(SUITE.datasets[w.dataset], sort_keys=True),
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
        "python -m fcn prepare {wildcards.dataset} {SUITE_OPTION} --data-dir '{DATA}' "
        "--threads {threads} > {log} 2>&1"


rule backbone:
    input:
        lambda w: [
            archive_json(SUITE.backbones[w.backbone]["archive"])
            for _ in range("archive" in SUITE.backbones[w.backbone])
        ],
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
        "python -m fcn backbone {wildcards.backbone} {SUITE_OPTION} --data-dir '{DATA}' "
        "--threads {threads} > {log} 2>&1"
