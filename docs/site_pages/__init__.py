"""What MkDocs makes of the code and the notebooks: pages that nobody writes by hand. `hooks` is where it begins."""
