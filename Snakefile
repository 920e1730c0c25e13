# The DAG: archives -> data sets and backbones -> train -> evaluate, time -> report.
# What is run stands in config/suites; how the files depend on each other, in workflow/rules.
configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/runs.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/extra.smk"


rule all:
    default_target: True
    input:
        REPORT,
        RESULTS,  # else a deleted one would not be missed while the report is there
