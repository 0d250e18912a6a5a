"""The audit of a study: whether its evidence holds together, and what a reader has to know of it.

What it can show. A record, an item, a design, a date or a line of the chain that was changed alone; a run that was
entered and is gone, or was put there and never entered; a copy in the place of another seed's run; runs that were
scored on test and stand in no row; the same comparison under another name; arms on other items; runs of unknown or
mixed code, processors, threads, attention.

What it cannot show from inside the results folder. Whoever writes design, chain and all records anew, digests
included, has a folder that holds together: runs may be left out of it, and its dates are whatever he liked. The same
holds for runs in a folder that nobody is shown, and for the last lines of a chain with their records. Against that
only something outside helps: the commit of a repository that holds the registration (`study.register=true`, commit,
`study.anchor=<commit>`), and that others have seen. Git's own dates can be set as well: an anchor is worth what
others know of the commit (a push to a public place, a mail, a time stamp).
"""
