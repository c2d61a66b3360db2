"""Checks the values that Packer makes of the templates, where Packer itself takes anything."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

packer = sys.argv[1]
folder = Path("packer")
UNATTEND = {"": "urn:schemas-microsoft-com:unattend"}
VALUES = """jsonencode({
    answers = replace(local.answers["autounattend.xml"], local.build_password, "THE PASSWORD"), network = lookup(local.answers, "network.json", ""),
    image_name = local.image_name, locale = var.locale, time_zone = var.time_zone, build_user = local.build_user,
    iso_checksum = local.iso_checksum, images = local.images, environment = local.script_environment })"""


def ask(command, *arguments, question=None):
    call = [packer, command, *arguments, "packer"]
    return subprocess.run(call, input=question, stdout=subprocess.PIPE, text=True, check=True).stdout


def console(expression, **variables):
    arguments = [word for name, value in variables.items() for word in ("-var", f"{name}={value}")]
    return ask("console", *arguments, question=expression.replace("\n", " "))


def check(holds, fault):
    if not holds:
        sys.exit(f"FAILED: {fault}")


def check_answers(values):
    root = ElementTree.fromstring(values["answers"])
    texts = [element.text for element in root.iter()]
    for name in ("image_name", "locale", "time_zone", "build_user"):
        check(values[name] in texts, f"the answer file does not hold {name}: {values[name]}")
    # Windows Setup refuses a list whose items are not counted from 1.
    for items in root.iter():
        orders = [item.findtext("Order", namespaces=UNATTEND) for item in items]
        if any(orders):
            check(orders == [str(n + 1) for n in range(len(orders))], f"{items.tag} has the orders {orders}")
    passwords = [e.findtext("Value", namespaces=UNATTEND) for e in root.iter() if e.find("PlainText", UNATTEND) is not None]
    check(passwords == ["THE PASSWORD"] * 3, f"the passwords of the answer file are {passwords}")
    check(values["answers"].count("THE PASSWORD") == 3, "the answer file holds the password elsewhere, too")


rooms = {}
# What Packer hides it prints as <sensitive>.
check(console("local.build_password").strip() == "<sensitive>", "Packer shows the password of the build")
check(len({console("sha256(local.build_password)") for _ in range(2)}) == 2, "two builds have the same password")

for windows in ("server-2022", "server-2025", "windows-11"):
    said = console(VALUES, windows=windows)
    check("<sensitive>" not in said, "a script gets the password of the build")
    values = json.loads(said)
    check_answers(values)
    check("<Key>" not in values["answers"].partition("<ProductKey>")[2].partition("</ProductKey>")[0], f"{windows}: a product key")
    check(values["network"] == "", f"{windows}: an address, though DHCP gives one")
    rooms[windows] = {name: image["disk_gb"] for name, image in values["images"].items()}
    check(re.fullmatch("sha256:[0-9a-f]{64}", values["iso_checksum"]), f"{windows}: the ISO has no SHA-256")
odd = {"image_name": 'A & B <"C">', "locale": "sv-SE", "time_zone": "Romance Standard Time"}
check_answers(json.loads(console(VALUES, **odd)))

key = "ABCDE-12345-FGHIJ-67890-KLMNO"
said = console('replace(local.answers["autounattend.xml"], var.product_key, "THE KEY")', product_key=key)
check(said.count("THE KEY") == 1 and "<Key>THE KEY</Key>" in said and key not in said, "the product key is not in its place alone")
said = console(VALUES, build_address="172.30.1.254/23", build_gateway="172.30.0.1", build_dns_servers="10.0.0.1,10.0.0.2")
network = {"address": "172.30.1.254/23", "gateway": "172.30.0.1", "dns_servers": ["10.0.0.1", "10.0.0.2"]}
check(json.loads(json.loads(said)["network"]) == network, "network.json is not what the variables say")

# A script that reads a value under another name than it is given gets an empty text.
given = {pair.split("=")[0] for pair in values["environment"]} | {"FREE_GB_WANTED"}
code = "\n".join(re.sub("(?m)^ *#.*", "", file.read_text()) for file in (folder / "scripts").glob("*.ps1"))
read = set(re.findall(r"\$env:([A-Z]+_[A-Z0-9_]+)", code))
read -= {"JAVA_HOME", "RUNNER_TOOL_CACHE", "AGENT_TOOLSDIRECTORY"}  # variables of the image
check(read == given, f"scripts read {read - given}, which they do not get, and do not read {given - read}, which they get")

declared = set(re.findall(r"(?m)^var\.(\w+):", ask("inspect")))
templates = "\n".join(file.read_text() for file in folder.glob("*.pkr.hcl"))
used = set(re.findall(r"\bvar\.(\w+)", re.sub("(?m)^ *condition .*", "", templates)))
check(declared == used, f"these variables have no effect: {declared - used}")
readme = (folder / "README.md").read_text()
table = readme.split("| variable | default | |\n")[1].split("\n\n")[0]
listed = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
check(listed == declared, f"README.md and the templates differ in these variables: {listed ^ declared}")

for name, image in values["images"].items():
    disks = [rooms[windows][name] for windows in ("server-2022", "server-2025", "windows-11")]
    check(disks[0] == disks[1] and disks[2] >= 52, f"the disks of {name} are {disks}")
    larger = "" if disks[2] == disks[0] else f" (Windows 11: {disks[2]} GB)"
    room = f"{disks[0]} GB{larger}, {image['free_gb']} GB or more free"
    check(room in readme, f"README.md does not say of {name}: {room}")
    tools = json.loads((folder / "tools" / image["tools"]).read_text())
    packages = [package for package, *arguments in tools["packages"]]
    check(len(packages) == len(set(packages)), f"{image['tools']} lists a package twice")
    check(tools["checks"], f"{image['tools']} checks nothing")
    for tool in tools["toolCache"]:
        check(tool["onPath"] in ["", *tool["versions"]], f"{image['tools']}: {tool['onPath']} is not in the tool cache")
