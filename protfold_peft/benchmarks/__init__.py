"""Speed and memory beside other programs: what `protfold bench` and the scripts in `benchmarks/` run.

`machine` says where, `measuring` takes time and peak memory, `models` makes models of random weights, `prediction`,
`finetuning` and `scoring` are what is measured, `suite` runs it in processes of its own and keeps the rows, `table`
prints them.
"""
