# The report, and one target per table and figure: `snakemake table1` makes what the table needs and
# renders the report from whatever results there are.
REPORT = "reports/tables.html"
RUNS = list(SUITE.runs.values())


def results_of(runs):
    timed = [run for run in runs if run.time]
    return each("metrics.json", runs) + [f"results/{r.id}/seed{r.seeds[0]}/timing.json" for r in timed]


BOUNDS = [f"results/{bound['dataset']}/bounds.json" for bound in SUITE.bounds]
CLASSIFIER = ["results/classifier.json"] if SUITE.classifier else []
RESULTS = [] if config["partial"] else results_of(RUNS) + BOUNDS + CLASSIFIER
RENDER = f"python -m fcn report {RUNS_OPTION} {DATA_OPTION}"


rule report:
    # After a failure (onerror, below) it is rendered again from what there is.
    input:
        RESULTS,
        [] if config["partial"] else "results/architecture.json",
        "config/claims.yaml",
        "config/tables.yaml",
        "config/server_scores.yaml",
        "config/paper_numbers.csv",
        "config/figure5.csv",
    output:
        REPORT,
        "reports/tables.csv",
        "reports/tables.md",
        "reports/tables.tex",
    params:
        rows=fingerprint([[r.id, r.title, r.note, r.hash, [asdict(x) for x in r.rows]] for r in RUNS]),
        results=fingerprint([[r.seeds, r.time] for r in RUNS]),
        suite=fingerprint([SUITE.title, SUITE.notice, SUITE.compare, SUITE.bounds, SUITE.classifier]),
    log:
        "logs/report.log",
    benchmark:
        "logs/report.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    resources:
        gpu_share=0,
    shell:
        "{RENDER} > {log} 2>&1"


def results_for(table):
    """What a table shows; a clear error where it would be empty."""

    def given(wildcards):
        if problem := unfilled(SUITE, table):
            raise WorkflowError(problem)
        return results_of([run for run in RUNS if table in {row.table for row in run.rows}])

    return given


for table in SUITE.tables:

    rule:
        name:
            table
        input:
            results_for(table),
            BOUNDS if table == "bounds" else [],
            CLASSIFIER if of_classifier(SUITE, table) else [],
            "results/architecture.json",
        log:
            f"logs/{table}.log",
        conda:
            "../../environment.yml"
        threads: 1
        resources:
            gpu_share=0,
        shell:
            "{RENDER} > {log} 2>&1"


onerror:
    # A failed run must not cost the report: it is rendered with a hole that names the log.
    if not config["partial"]:
        conda = " --use-conda" if "conda" in {str(m) for m in workflow.deployment_settings.deployment_method} else ""
        given = " ".join(f"{key}={quote(str(config[key]))}" for key in ("suite", "seeds", "precision", "data_dir", "device") if config[key])
        shell(
            "{sys.executable:q} -m snakemake --nolock --cores 1 --quiet --force{conda} report "
            "--config {given} partial=true || true"
        )
