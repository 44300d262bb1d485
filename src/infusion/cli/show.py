"""An adapter file -> what it is: `infusion show`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def show(
    file: Annotated[Path, typer.Argument(help="An adapter file, or user/repo on the Hub.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say what an adapter file is."""
    from infusion.hub import adapter_path
    from infusion.methods.adapter_file import read_adapter_file

    path = adapter_path(file)
    about, tensors = read_adapter_file(path)
    norms = {name: round(float(tensor.float().norm()), 6) for name, tensor in tensors.items()}
    facts = about | {
        "num_parameters": about.get("num_parameters", sum(tensor.numel() for tensor in tensors.values())),
        "bytes": path.stat().st_size,
        "norms": norms,
    }
    if as_json:
        print(json.dumps(facts, indent=2, sort_keys=True))
        return
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    print(f'<{about["concept_name"]}>, a concept of class noun "{about["class_noun"]}"')
    print(f"  method      {about['method']} ({about['paper']})")
    print(f"  settings    {_listed(about['settings'])}")
    print(f"  training    {_listed(about['training']) or 'not recorded'}")
    print(f"  base        {about['base']['id']}")
    print(f"  size        {facts['num_parameters']:,} parameters, {facts['bytes']:,} bytes")
    print(f"  created     {about['created']} with {versions}")
    print("  norms")
    for name, norm in norms.items():
        print(f"    {norm:10.4f}  {tensors[name].numel():>6}  {name}")


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in values.items())
