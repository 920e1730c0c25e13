# Beside the tables: archives for the VOC evaluation server, the authors' released weights, section 3.1.


def some(paths, problem):
    """``paths`` for a target; a clear error where the suite has none."""

    def given(wildcards):
        if not paths:
            raise WorkflowError(f"suite {SUITE.name!r}: {problem}")
        return paths

    return given


SERVER_RUNS = {
    test: [run for run in SUITE.runs.values() if test in server_sets(SUITE, run)] for test in SERVER_SETS.values()
}


rule archive_of_labels:
    input:
        lambda w: trained(folder_of(w)),
        f"{DATA}/prepared/{{test}}/dataset.json",
    output:
        "results/{dataset}/{run}/seed{seed}/{test}.json",
        archive="results/{dataset}/{run}/seed{seed}/{test}.tgz",
    wildcard_constraints:
        test="|".join(SERVER_SETS.values()),
    log:
        "logs/submission/{dataset}/{run}/seed{seed}/{test}.log",
    benchmark:
        "logs/submission/{dataset}/{run}/seed{seed}/{test}.tsv"
    conda:
        "../../environment.yml"
    threads: SUITE.threads
    resources:
        gpu=1,
        gpu_share=SHARE,
    shell:
        "python -m fcn submission {wildcards.dataset}/{wildcards.run} --seed {wildcards.seed} {RUN_OPTION} "
        "--dataset {wildcards.test} --out {output.archive} {DATA_OPTION} --device {config[device]} "
        "--threads {threads} > {log} 2>&1"


rule submission:
    # Of the runs that fill a row of the server's tables.
    input:
        some(
            [path for test, runs in SERVER_RUNS.items() for path in each(f"{test}.json", runs)],
            "no run fills a row of the VOC server's tables (rows: [{table: pami_table4, row: FCN-8s}]).",
        ),


rule released:
    input:
        some(
            results_of([run for run in RUNS if run.released]),
            "no run has weights: {released: ..}; add --config suite=released.",
        ),
        "results/architecture.json",
    log:
        "logs/released.log",
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu_share=0,
    shell:
        "{RENDER} > {log} 2>&1"


def classifier_of(wildcards):
    if SUITE.classifier is None:
        raise WorkflowError(f"suite {SUITE.name!r} names no classifier: {{net: .., crop: .., image: ..}}.")
    return fingerprint([SUITE.classifier, SUITE.resolved_net(SUITE.classifier["net"])])


rule classifier:
    # All cores and all GPUs: nothing runs beside a measurement on this machine.
    output:
        "results/classifier.json",
    params:
        classifier=classifier_of,
    log:
        "logs/classifier.log",
    benchmark:
        "logs/classifier.tsv"
    conda:
        "../../environment.yml"
    threads: ALL_CORES
    resources:
        gpu=1,
        gpu_share=SHARES if GPUS else 0,
    shell:
        "python -m fcn classifier {SUITE_OPTION} --device {config[device]} --threads {threads} > {log} 2>&1"
