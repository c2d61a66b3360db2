//! The Packer templates, resolved as Packer would resolve them: every variable,
//! local, source, file and script that they name is there and is used, each
//! template can be built alone, no password stands in them, and the answer file
//! describes a disk that UEFI Windows can be installed on. No Packer runs here:
//! the HCL is parsed and evaluated with the crate hcl-rs.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use hcl::eval::{Context, Evaluate, FuncArgs, FuncDef, ParamType};
use hcl::{Block, Body, Map, Template, Value};
use roxmltree::{Document, Node};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

/// What `uuidv4()` gives here: no other text of the templates contains it.
const UUID: &str = "5e0f7c1a-uuid-of-this-build";
const WINDOWS: [&str; 3] = ["server-2022", "server-2025", "windows-11"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packer")
}

fn read(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Names of the files of a folder below packer/, sorted.
fn names(of: &str) -> BTreeSet<String> {
    fs::read_dir(folder().join(of))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

fn templates() -> BTreeMap<String, Body> {
    names(".")
        .into_iter()
        .filter(|name| name.ends_with(".pkr.hcl"))
        .map(|name| {
            let body = hcl::parse(&read(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
            (name, body)
        })
        .collect()
}

fn blocks<'a>(
    templates: &'a BTreeMap<String, Body>,
    kind: &'a str,
) -> impl Iterator<Item = (&'a str, &'a Block)> {
    templates.iter().flat_map(move |(file, body)| {
        body.blocks().filter(move |b| b.identifier() == kind).map(move |b| (file.as_str(), b))
    })
}

fn label(block: &Block, index: usize) -> &str {
    block.labels()[index].as_str()
}

fn evaluate(body: &Body, context: &Context) -> Result<Map<String, Value>, String> {
    body.attributes()
        .map(|a| {
            let value = a.expr().evaluate(context).map_err(|e| format!("{}: {e}", a.key()))?;
            Ok((a.key().to_string(), value))
        })
        .collect()
}

struct Build {
    file: String,
    /// Fields of the source in the build, which Packer adds to those of `source`.
    fields: Map<String, Value>,
    provisioners: Vec<(String, Map<String, Value>)>,
}

impl Build {
    fn name(&self) -> &str {
        self.fields["name"].as_str().unwrap()
    }

    /// All scripts in the order in which they run.
    fn scripts(&self) -> Vec<String> {
        self.provisioners.iter().flat_map(|(_, fields)| strings(fields, &["script", "scripts"])).collect()
    }
}

struct Resolved {
    locals: Map<String, Value>,
    source: Map<String, Value>,
    builds: Vec<Build>,
}

/// The strings in some fields, each of which may be absent, a string or a list.
fn strings(fields: &Map<String, Value>, keys: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for value in keys.iter().filter_map(|key| fields.get(*key)) {
        match value {
            Value::Array(items) => found.extend(items.iter().map(|i| i.as_str().unwrap().to_string())),
            other => found.push(other.as_str().unwrap().to_string()),
        }
    }
    found
}

fn uuidv4(_: FuncArgs) -> Result<Value, String> {
    Ok(Value::from(UUID))
}

fn concat(args: FuncArgs) -> Result<Value, String> {
    Ok(Value::Array(args.iter().flat_map(|a| a.as_array().unwrap().clone()).collect()))
}

fn split(args: FuncArgs) -> Result<Value, String> {
    let (separator, text) = (args[0].as_str().unwrap(), args[1].as_str().unwrap());
    Ok(Value::Array(text.split(separator).map(Value::from).collect()))
}

fn substr(args: FuncArgs) -> Result<Value, String> {
    let (start, length) = (args[1].as_u64().unwrap() as usize, args[2].as_u64().unwrap() as usize);
    Ok(Value::from(&args[0].as_str().unwrap()[start..start + length]))
}

fn length(args: FuncArgs) -> Result<Value, String> {
    Ok(Value::from(args[0].as_str().map_or_else(|| args[0].as_array().unwrap().len(), str::len)))
}

fn contains(args: FuncArgs) -> Result<Value, String> {
    Ok(Value::from(args[0].as_array().unwrap().contains(&args[1])))
}

/// Fails on a name in the template that it is not given, as Packer's does.
fn templatefile(args: FuncArgs) -> Result<Value, String> {
    let text = fs::read_to_string(args[0].as_str().unwrap()).map_err(|e| e.to_string())?;
    let mut context = Context::new();
    for (name, value) in args[1].as_object().unwrap() {
        context.declare_var(name.as_str(), value.clone());
    }
    let template = Template::from_str(&text).map_err(|e| e.to_string())?;
    template.evaluate(&context).map(Value::from).map_err(|e| e.to_string())
}

fn context() -> Context<'static> {
    let mut context = Context::new();
    let root = folder().to_str().unwrap().to_string();
    context.declare_var("path", Value::from_iter([("root".to_string(), Value::from(root))]));
    context.declare_func("uuidv4", FuncDef::builder().build(uuidv4));
    context.declare_func(
        "concat",
        FuncDef::builder().variadic_param(ParamType::array_of(ParamType::Any)).build(concat),
    );
    context.declare_func(
        "contains",
        FuncDef::builder().param(ParamType::Any).param(ParamType::Any).build(contains),
    );
    context.declare_func("length", FuncDef::builder().param(ParamType::Any).build(length));
    context.declare_func(
        "split",
        FuncDef::builder().params([ParamType::String, ParamType::String]).build(split),
    );
    context.declare_func(
        "substr",
        FuncDef::builder().params([ParamType::String, ParamType::Number, ParamType::Number]).build(substr),
    );
    context.declare_func(
        "templatefile",
        FuncDef::builder().param(ParamType::String).param(ParamType::Any).build(templatefile),
    );
    context
}

/// Evaluates everything, with some variables set as by `-var`, and without one
/// `var.name` or `local.name`.
fn resolve(set: &[(&str, &str)], without: &str) -> Result<Resolved, String> {
    let templates = templates();
    let mut context = context();

    let mut variables: Map<String, Value> = Map::new();
    for (file, block) in blocks(&templates, "variable") {
        let name = label(block, 0);
        let default = block
            .body()
            .attributes()
            .find(|a| a.key() == "default")
            .ok_or(format!("{file}: {name}: no default"))?;
        let value = default.expr().evaluate(&context).map_err(|e| e.to_string())?;
        if format!("var.{name}") != without && variables.insert(name.to_string(), value).is_some() {
            return Err(format!("{file}: {name} is declared twice"));
        }
    }
    for (name, value) in set {
        assert!(variables.insert(name.to_string(), Value::from(*value)).is_some(), "{name} is not declared");
    }
    context.declare_var("var", Value::Object(variables));

    let mut open = Vec::new();
    for (_, block) in blocks(&templates, "locals") {
        open.extend(block.body().attributes().map(|a| (a.key().to_string(), a.expr().clone())));
    }
    for (_, block) in blocks(&templates, "local") {
        let expression = block.body().attributes().find(|a| a.key() == "expression").unwrap();
        open.push((label(block, 0).to_string(), expression.expr().clone()));
    }
    open.retain(|(name, _)| format!("local.{name}") != without);
    // A local may use others, in any order: again and again, until none is left.
    let mut locals: Map<String, Value> = Map::new();
    context.declare_var("local", Value::Object(locals.clone()));
    while !open.is_empty() {
        let before = open.len();
        let mut fault = String::new();
        open.retain(|(name, expression)| match expression.evaluate(&context) {
            Ok(value) => locals.insert(name.clone(), value).is_some(),
            Err(e) => {
                fault = format!("local.{name}: {e}");
                true
            }
        });
        context.declare_var("local", Value::Object(locals.clone()));
        if open.len() == before {
            return Err(fault);
        }
    }

    let sources: Vec<_> = blocks(&templates, "source").collect();
    let [(_, block)] = sources[..] else { return Err("expected one source".into()) };
    let reference = format!("source.{}.{}", label(block, 0), label(block, 1));
    let source = evaluate(block.body(), &context)?;

    let mut builds = Vec::new();
    for (file, build) in blocks(&templates, "build") {
        let sources: Vec<_> = build.body().blocks().filter(|b| b.identifier() == "source").collect();
        let [used] = sources[..] else { return Err(format!("{file}: expected one source")) };
        if label(used, 0) != reference {
            return Err(format!("{file}: {} is not declared", label(used, 0)));
        }
        let provisioners = build
            .body()
            .blocks()
            .filter(|b| b.identifier() == "provisioner")
            .map(|b| Ok((label(b, 0).to_string(), evaluate(b.body(), &context)?)))
            .collect::<Result<_, String>>()?;
        builds.push(Build { file: file.to_string(), fields: evaluate(used.body(), &context)?, provisioners });
    }
    Ok(Resolved { locals, source, builds })
}

fn resolved() -> Resolved {
    resolve(&[], "").unwrap()
}

fn build(name: &str) -> Build {
    resolved().builds.into_iter().find(|b| b.name() == name).unwrap()
}

#[test]
fn every_variable_local_and_template_resolves_for_each_windows() {
    for windows in WINDOWS {
        let resolved = resolve(&[("windows", windows)], "").unwrap_or_else(|e| panic!("{windows}: {e}"));
        for key in ["iso_url", "iso_checksum", "image_name"] {
            assert_eq!(
                &resolved.locals[key],
                get(get(&resolved.locals["windows"], windows), key),
                "{windows}"
            );
        }
    }
}

/// Whether a variable's validation lets a value pass.
fn admits(variable: &str, value: &str) -> bool {
    let templates = templates();
    let (_, block) = blocks(&templates, "variable").find(|(_, b)| label(b, 0) == variable).unwrap();
    let validation = block.body().blocks().find(|b| b.identifier() == "validation").unwrap();
    let condition = validation.body().attributes().find(|a| a.key() == "condition").unwrap();
    let mut context = context();
    context.declare_var("var", Value::from_iter([(variable.to_string(), Value::from(value))]));
    condition.expr().evaluate(&context).unwrap() == Value::from(true)
}

#[test]
fn the_choice_of_windows_admits_what_has_an_iso_and_nothing_else() {
    let known: Vec<String> = resolved().locals["windows"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(BTreeSet::from_iter(known), BTreeSet::from(WINDOWS.map(String::from)));
    assert!(WINDOWS.into_iter().all(|windows| admits("windows", windows)));
    assert!(!admits("windows", "server-2016"));
}

#[test]
fn a_runner_that_is_not_named_by_version_and_sha_256_is_refused() {
    assert!(admits("runner_version", "2.338.0"));
    assert!(
        !admits("runner_version", "v2.338.0")
            && !admits("runner_version", "2.338")
            && !admits("runner_version", "latest")
    );
    assert!(admits("runner_sha256", &"0".repeat(64)) && !admits("runner_sha256", &"0".repeat(40)));
}

#[test]
fn a_set_iso_replaces_the_evaluation_iso() {
    let set = [("iso_url", "D:\\iso\\own.iso"), ("iso_checksum", "sha256:00"), ("image_name", "Own Edition")];
    let resolved = resolve(&set, "").unwrap();
    assert_eq!(resolved.source["iso_url"], Value::from("D:\\iso\\own.iso"));
    assert_eq!(resolved.source["iso_checksum"], Value::from("sha256:00"));
    assert!(answer_file(&resolved).contains("<Value>Own Edition</Value>"));
}

#[test]
fn every_evaluation_iso_comes_from_microsoft_with_a_sha_256() {
    for (windows, iso) in resolved().locals["windows"].as_object().unwrap() {
        let url = get(iso, "iso_url").as_str().unwrap();
        assert!(
            url.starts_with("https://software-static.download.prss.microsoft.com/") && url.ends_with(".iso"),
            "{windows}"
        );
        let hash = get(iso, "iso_checksum").as_str().unwrap().strip_prefix("sha256:").unwrap();
        assert!(is_sha256(hash), "{windows}: {hash}");
    }
}

/// Taking one away must break the evaluation, or it is used nowhere.
#[test]
fn every_variable_and_every_local_is_used() {
    let templates = templates();
    let mut names: Vec<String> =
        blocks(&templates, "variable").map(|(_, b)| format!("var.{}", label(b, 0))).collect();
    names.extend(blocks(&templates, "local").map(|(_, b)| format!("local.{}", label(b, 0))));
    for (_, block) in blocks(&templates, "locals") {
        names.extend(block.body().attributes().map(|a| format!("local.{}", a.key())));
    }
    assert!(names.len() > 15);
    for name in names {
        assert!(resolve(&[], &name).is_err(), "{name} is used nowhere");
    }
}

#[test]
fn every_variable_says_what_it_is_and_of_which_type() {
    let templates = templates();
    for (file, block) in blocks(&templates, "variable") {
        for key in ["description", "type", "default"] {
            assert!(
                block.body().attributes().any(|a| a.key() == key),
                "{file}: {} has no {key}",
                label(block, 0)
            );
        }
    }
}

/// Packer 1.6.6, which Debian has, knows the Hyper-V builder without a plugin, and so
/// each of its settings. Of the templates it does not know three things, which are
/// taken out: the plugins, sensitive locals, and files given as text on the CD.
#[test]
fn a_packer_with_a_builder_of_its_own_accepts_each_template() {
    let run = |folder: &Path, arguments: &[&str]| {
        Command::new("packer").args(arguments).current_dir(folder).output()
    };
    let here = folder();
    let version = run(&here, &["version"])
        .map_or_else(|_| String::new(), |o| String::from_utf8_lossy(&o.stdout).into_owned());
    if !version.starts_with("Packer v1.6.") {
        eprintln!("not checked: no Packer 1.6 is installed");
        return;
    }
    let copy = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("packer-1.6");
    let _ = fs::remove_dir_all(&copy);
    for part in ["", "scripts", "guest", "tools"] {
        fs::create_dir_all(copy.join(part)).unwrap();
        for name in names(if part.is_empty() { "." } else { part }) {
            fs::copy(here.join(part).join(&name), copy.join(part).join(&name)).unwrap();
        }
    }
    let cut = |text: String, from: &str, to: &str, instead: &str| {
        let start = text.find(from).unwrap();
        let end = start + text[start..].find(to).unwrap() + to.len();
        format!("{}{instead}{}", &text[..start], &text[end..])
    };
    let shared = read("shared.pkr.hcl");
    let shared = cut(shared, "packer {\n", "\n}\n", "");
    let shared = cut(shared, "  cd_content = {\n", "\n  }\n", "");
    let shared = cut(
        shared,
        "local \"build_password\" {\n  expression = ",
        "\n}\n",
        "locals {\n  build_password = uuidv4()\n}\n",
    );
    fs::write(copy.join("shared.pkr.hcl"), &shared).unwrap();

    let validate = |template: &str| {
        let output = run(&copy, &["validate", &format!("-only=hyperv-iso.{template}"), "."]).unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    for template in ["windows-runner", "windows-runner-enhanced"] {
        let (accepted, said) = validate(template);
        assert!(accepted, "{template}: {said}");
    }
    // And it does look at the settings of the build of that name.
    fs::write(
        copy.join("shared.pkr.hcl"),
        shared.replace("winrm_timeout  = \"2h\"", "winrm_timeout  = \"2 hours\""),
    )
    .unwrap();
    let (accepted, said) = validate("windows-runner");
    assert!(!accepted && said.contains("winrm_timeout"), "{said}");
}

#[test]
fn the_readme_lists_every_variable_and_no_other() {
    let templates = templates();
    let declared: BTreeSet<String> =
        blocks(&templates, "variable").map(|(_, b)| label(b, 0).to_string()).collect();
    let readme = read("README.md");
    let table = readme.split_once("| variable | default | |\n").unwrap().1.split_once("\n\n").unwrap().0;
    let listed: BTreeSet<String> = table
        .lines()
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|names| names.split('`').skip(1).step_by(2))
        .map(String::from)
        .collect();
    assert_eq!(listed, declared);
}

#[test]
fn the_hyperv_plugin_is_required_with_a_floor() {
    let templates = templates();
    let packer: Vec<_> = blocks(&templates, "packer").collect();
    let [(_, block)] = packer[..] else { panic!("expected one packer block") };
    let plugins = block.body().blocks().find(|b| b.identifier() == "required_plugins").unwrap();
    let plugins = evaluate(plugins.body(), &Context::new()).unwrap();
    assert_eq!(plugins.keys().collect::<Vec<_>>(), ["hyperv"]);
    assert_eq!(*get(&plugins["hyperv"], "source"), Value::from("github.com/hashicorp/hyperv"));
    assert!(get(&plugins["hyperv"], "version").as_str().unwrap().starts_with(">= "));
}

/// `-only=hyperv-iso.<name>` picks by the name that the build gives its source.
#[test]
fn each_template_is_a_build_of_its_own_that_only_can_pick() {
    let builds = resolved().builds;
    let names: Vec<&str> = builds.iter().map(Build::name).collect();
    assert_eq!(names, ["windows-runner-enhanced", "windows-runner"], "in the order of their files");
    for build in &builds {
        assert_eq!(build.file, format!("{}.pkr.hcl", build.name()));
        assert_eq!(build.fields["vm_name"], build.fields["name"]);
        let output = build.fields["output_directory"].as_str().unwrap();
        assert!(output.ends_with(&format!("/output-{}", build.name())), "two builds must not share {output}");
        assert!(
            read(&build.file).contains(&format!("-only=hyperv-iso.{} .", build.name())),
            "its head says how"
        );
    }
}

/// Packer refuses a field that stands both in the source and in the build.
#[test]
fn no_build_sets_a_field_that_the_source_has_already() {
    let resolved = resolved();
    for build in &resolved.builds {
        for key in build.fields.keys() {
            assert!(!resolved.source.contains_key(key), "{}: {key}", build.file);
        }
    }
}

#[test]
fn the_vm_of_the_build_is_of_generation_2_with_secure_boot_and_leaves_its_disk() {
    let source = resolved().source;
    assert_eq!(source["generation"], Value::from(2));
    assert_eq!(source["enable_secure_boot"], Value::from(true));
    assert_eq!(source["skip_export"], Value::from(true));
    assert!(source.keys().all(|key| !key.starts_with("floppy")), "generation 2 has no floppy drive");
}

#[test]
fn the_disks_have_the_promised_sizes_and_the_promised_room() {
    for (name, size, free) in [("windows-runner", 30, 8), ("windows-runner-enhanced", 75, 14)] {
        let build = build(name);
        assert_eq!(build.fields["disk_size"], Value::from(size * 1024), "{name}, in MB");
        assert_eq!(environment(&build)["FREE_GB_WANTED"], free.to_string(), "{name}");
    }
}

#[test]
fn every_file_that_a_template_names_exists() {
    let resolved = resolved();
    let mut files = strings(&resolved.source, &["cd_files"]);
    for build in &resolved.builds {
        for (kind, fields) in &build.provisioners {
            let named = strings(fields, &["script", "scripts", "source", "sources"]);
            assert_eq!(named.is_empty(), kind == "windows-restart", "{}: {kind}", build.file);
            files.extend(named);
        }
    }
    for file in files {
        assert!(Path::new(&file).is_file(), "{file}");
    }
}

#[test]
fn every_script_guest_file_and_tool_list_is_used() {
    let resolved = resolved();
    let mut used = BTreeSet::new();
    let mut use_all = |files: Vec<String>| {
        used.extend(
            files.into_iter().map(|f| f.strip_prefix(folder().to_str().unwrap()).unwrap()[1..].to_string()),
        );
    };
    use_all(strings(&resolved.source, &["cd_files"]));
    for build in &resolved.builds {
        for (_, fields) in &build.provisioners {
            use_all(strings(fields, &["script", "scripts", "source", "sources"]));
        }
    }
    for part in ["scripts", "guest", "tools"] {
        for name in names(part) {
            assert!(used.contains(&format!("{part}/{name}")), "{part}/{name} is used by no template");
        }
    }
}

fn uploads(build: &Build, to: &str) -> BTreeSet<String> {
    build
        .provisioners
        .iter()
        .filter(|(kind, fields)| kind == "file" && fields["destination"].as_str().unwrap() == to)
        .flat_map(|(_, fields)| strings(fields, &["source", "sources"]))
        .map(|path| Path::new(&path).file_name().unwrap().to_str().unwrap().to_string())
        .collect()
}

#[test]
fn the_whole_guest_goes_into_each_image() {
    for build in resolved().builds {
        assert_eq!(uploads(&build, "C:/runner-pool-guest/"), names("guest"), "{}", build.file);
    }
}

#[test]
fn a_script_finds_what_it_takes_from_the_builds_folder() {
    for build in resolved().builds {
        let mut there = BTreeSet::new();
        for (kind, fields) in &build.provisioners {
            if kind == "file" && fields["destination"].as_str().unwrap().ends_with('/') {
                there.extend(strings(fields, &["source", "sources"]).iter().map(|p| file_name(p)));
            } else if kind == "file" {
                there.insert(file_name(fields["destination"].as_str().unwrap()));
            }
            for script in strings(fields, &["script", "scripts"]) {
                let text = fs::read_to_string(&script).unwrap();
                for wanted in ["common.ps1", "tools.json", "seal.ps1"] {
                    let reads = text.contains(&format!("'C:\\runner-pool-build\\{wanted}'"));
                    assert!(
                        !reads || there.contains(wanted),
                        "{}: {script} runs before {wanted} is there",
                        build.file
                    );
                }
            }
        }
        assert!(there.contains("seal.ps1"), "prepare-seal.ps1 registers it");
    }
}

/// A value inside an object.
fn get<'a>(value: &'a Value, key: &str) -> &'a Value {
    &value.as_object().unwrap()[key]
}

fn file_name(path: &str) -> String {
    path.rsplit(['/', '\\']).next().unwrap().to_string()
}

/// From install-guest.ps1 on, a start of the VM starts a runner, which without a
/// pool powers off. And what is checked and sealed is the image as it will be.
#[test]
fn the_steps_come_in_an_order_that_works() {
    for build in resolved().builds {
        let scripts: Vec<String> = build.scripts().iter().map(|s| file_name(s)).collect();
        let at = |name: &str| {
            scripts.iter().position(|s| s == name).unwrap_or_else(|| panic!("{}: {name}", build.file))
        };
        assert_eq!(at("prepare-windows.ps1"), 0);
        assert!(at("install-chocolatey.ps1") < at("install-tools.ps1"));
        assert!(at("install-runner.ps1") < at("install-guest.ps1"));
        assert!(at("install-guest.ps1") < at("record-image.ps1"));
        assert!(at("record-image.ps1") < at("check-image.ps1"));
        assert!(at("clean-up.ps1") < at("check-image.ps1"), "free space is measured after the cleaning");
        assert_eq!(at("prepare-seal.ps1"), scripts.len() - 1);

        let (last, _) = build.provisioners.last().unwrap();
        assert_eq!(last, "powershell");
        let guest = build
            .provisioners
            .iter()
            .position(|(_, f)| strings(f, &["scripts"]).iter().any(|s| s.ends_with("install-guest.ps1")));
        let restart = build.provisioners.iter().rposition(|(kind, _)| kind == "windows-restart");
        assert!(restart < guest, "{}: no restart after install-guest.ps1", build.file);
    }
}

#[test]
fn the_build_ends_by_sealing_the_image() {
    let command = resolved().source["shutdown_command"].as_str().unwrap().to_string();
    let task = command.rsplit(' ').next().unwrap();
    assert_eq!(command, format!("schtasks.exe /run /tn {task}"));
    assert!(read("scripts/prepare-seal.ps1").contains(&format!("Register-ScheduledTask -TaskName '{task}'")));
    assert!(read("scripts/seal.ps1").trim_end().ends_with("& shutdown.exe /s /f /t 0"));
}

/// Packer has been seen to go on after a lost connection as if a script had ended.
#[test]
fn an_image_whose_checks_did_not_end_well_is_not_sealed() {
    let (check, seal) = (read("scripts/check-image.ps1"), read("scripts/seal.ps1"));
    let (before, mark) = check.split_once("\nif ($faults.Count -gt 0) { throw").unwrap();
    let checked = "'C:\\runner-pool-build\\checked'";
    assert!(
        !before.contains(checked)
            && mark.contains(&format!("New-Item -ItemType File -Force -Path {checked}"))
    );
    let first = seal.lines().find(|line| line.contains("throw")).unwrap();
    assert!(first.starts_with(&format!("if (-not (Test-Path -LiteralPath {checked})) {{ throw")), "{first}");
}

/// What enable-winrm.ps1 opens, seal.ps1 closes.
#[test]
fn sealing_undoes_what_the_build_has_opened() {
    let (open, close) = (read("scripts/enable-winrm.ps1"), read("scripts/seal.ps1"));
    let listener = "SelectorSet @{ Address = '*'; Transport = 'HTTPS' }";
    assert!(
        open.contains("$selectors = @{ Address = '*'; Transport = 'HTTPS' }")
            && open.contains("New-WSManInstance")
    );
    assert!(
        close.contains(&format!("Remove-WSManInstance -ResourceURI 'winrm/config/Listener' -{listener}"))
    );
    assert!(open.contains("New-NetFirewallRule -Name 'runner-pool-build-winrm'"));
    assert!(close.contains("Remove-NetFirewallRule -Name 'runner-pool-build-winrm'"));
    for (opened, closed) in [
        ("LocalAccountTokenFilterPolicy -Value 1", "LocalAccountTokenFilterPolicy -Value 0"),
        ("Set-Service -Name WinRM -StartupType Automatic", "Set-Service -Name WinRM -StartupType Disabled"),
        ("Service\\Auth\\Basic' -Value $true", "Service\\Auth\\Basic' -Value $false"),
    ] {
        assert!(open.contains(opened), "{opened}");
        assert!(close.contains(closed), "{closed}");
    }
    assert!(
        read("scripts/prepare-windows.ps1").contains("Set-MpPreference -DisableRealtimeMonitoring $true")
    );
    assert!(close.contains("Set-MpPreference -DisableRealtimeMonitoring $false"));
    assert!(close.contains("-Name AutoAdminLogon -Value '0'"));
    assert!(close.contains("Set-LocalUser -Name $account.Name -Password $password"));
}

/// KEY=value pairs that a build gives its scripts.
fn environment(build: &Build) -> BTreeMap<String, String> {
    build
        .provisioners
        .iter()
        .flat_map(|(_, fields)| strings(fields, &["environment_vars"]))
        .map(|pair| pair.split_once('=').map(|(k, v)| (k.to_string(), v.to_string())).unwrap())
        .collect()
}

/// Names read as `$env:NAME`, in upper case: those of Windows are in mixed case,
/// but for two.
fn environment_read(script: &str) -> BTreeSet<String> {
    let code: String =
        script.lines().filter(|l| !l.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n");
    code.split("$env:")
        .skip(1)
        .map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>())
        .filter(|name| name.contains('_') && !name.contains(|c: char| c.is_ascii_lowercase()))
        .collect()
}

#[test]
fn each_script_gets_the_values_that_it_reads_and_no_value_is_given_in_vain() {
    // What install-runner.ps1 and configure-java.ps1 put into the machine's environment.
    let of_the_image = ["AGENT_TOOLSDIRECTORY", "RUNNER_TOOL_CACHE", "JAVA_HOME"];
    for build in resolved().builds {
        let mut all = BTreeSet::new();
        for (_, fields) in &build.provisioners {
            let given: BTreeSet<String> = strings(fields, &["environment_vars"])
                .iter()
                .map(|p| p.split('=').next().unwrap().to_string())
                .collect();
            for script in strings(fields, &["script", "scripts"]) {
                for name in environment_read(&fs::read_to_string(&script).unwrap()) {
                    assert!(
                        given.contains(&name) || of_the_image.contains(&name.as_str()),
                        "{script} reads {name}"
                    );
                    all.insert(name);
                }
            }
        }
        for name in environment(&build).keys() {
            assert!(all.contains(name), "{}: no script reads {name}", build.file);
        }
    }
}

#[test]
fn every_password_is_the_one_made_for_this_build_and_it_is_sensitive() {
    let resolved = resolved();
    let password = resolved.locals["build_password"].as_str().unwrap().to_string();
    assert!(password.contains(UUID), "made with uuidv4()");
    let classes = [char::is_uppercase, char::is_lowercase, char::is_numeric]
        .iter()
        .filter(|c| password.contains(**c))
        .count();
    assert_eq!(classes, 3, "the password policy of Windows asks for three kinds of characters");

    let templates = templates();
    let (_, block) = blocks(&templates, "local").find(|(_, b)| label(b, 0) == "build_password").unwrap();
    assert_eq!(evaluate(block.body(), &context()).unwrap()["sensitive"], Value::from(true));

    let mut found = 0;
    let mut check = |fields: &Map<String, Value>| {
        for (key, value) in fields {
            if key.contains("password") {
                assert_eq!(value.as_str(), Some(password.as_str()), "{key}");
                found += 1;
            } else if key != "cd_content" {
                assert!(!value.to_string().contains(UUID), "{key} holds the password");
            }
        }
    };
    check(&resolved.source);
    for build in &resolved.builds {
        build.provisioners.iter().for_each(|(_, fields)| check(fields));
    }
    assert!(found > 4, "only {found} passwords were looked at");

    let answers = answer_file(&resolved);
    let answers = Document::parse(&answers).unwrap();
    let values: Vec<Node> =
        answers.descendants().filter(|n| n.has_tag_name((NAMESPACE, "PlainText"))).collect();
    assert_eq!(values.len(), 3);
    for plain in values {
        assert_eq!(text(plain.parent_element().unwrap(), "Value"), password);
    }
}

#[test]
fn no_script_holds_a_password() {
    for (name, script) in all_scripts() {
        for line in script.lines() {
            for parameter in ["-Password ", "-AsPlainText", "-elevated_password"] {
                let Some((before, after)) = line.split_once(parameter) else { continue };
                assert!(!after.starts_with(['\'', '"']), "{name}: {line}");
                assert!(parameter != "-AsPlainText" || !before.contains("-String '"), "{name}: {line}");
            }
        }
    }
}

fn all_scripts() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for part in [".", "scripts", "guest"] {
        for name in names(part).into_iter().filter(|n| n.ends_with(".ps1")) {
            let path = format!("{part}/{name}");
            found.push((path.clone(), read(&path)));
        }
    }
    assert!(found.len() > 15);
    found
}

#[test]
fn scripts_are_ascii_and_begin_strictly() {
    for (name, script) in all_scripts() {
        assert!(
            script.is_ascii(),
            "{name}: Windows PowerShell reads a file without a byte order mark as ANSI"
        );
        assert!(!script.contains('\t'), "{name}");
        let mut code = script.lines().skip_while(|l| *l != "Set-StrictMode -Version Latest");
        assert!(code.next().is_some(), "{name}");
        assert_eq!(code.next(), Some("$ErrorActionPreference = 'Stop'"), "{name}");
    }
}

/// The image must work for any pool: it learns address, name and secret at start.
#[test]
fn the_image_holds_no_address_name_or_credential_of_a_pool() {
    let downloads = [
        "aka.ms",
        "api.github.com",
        "community.chocolatey.org",
        "dl.google.com",
        "docs.github.com",
        "github.com",
        "learn.microsoft.com",
        "raw.githubusercontent.com",
        "static.rust-lang.org",
    ];
    for (name, script) in all_scripts() {
        for (at, _) in script.match_indices("://") {
            let scheme = script[..at].rsplit(|c: char| !c.is_ascii_alphanumeric()).next().unwrap();
            assert_eq!(scheme, "https", "{name}");
            let host = script[at + 3..].split(['/', '\'', '"', '\n']).next().unwrap();
            assert!(downloads.contains(&host), "{name}: {host}");
            let line = script[..at].lines().last().unwrap();
            assert!(
                !name.starts_with("guest/") || line.starts_with('#'),
                "{name} names {host} outside a comment"
            );
        }
        for setting in ["ORCHESTRATOR_IP", "WEBHOOK_SECRET", "GITHUB_PAT", "GITHUB_ORG"] {
            assert!(!script.contains(setting), "{name}: {setting}");
        }
        let digits =
            |part: &str| !part.is_empty() && part.len() <= 3 && part.chars().all(|c| c.is_ascii_digit());
        for word in script.split(|c: char| !(c.is_ascii_alphanumeric() || ".:/\\()|".contains(c))) {
            let word = word.replace("\\.", ".");
            let address = word.split('.').filter(|p| digits(p.split('/').next().unwrap())).count() == 4;
            assert!(!address || word.contains("127.0.0.1"), "{name}: {word}");
        }
    }
}

#[test]
fn the_runner_is_pinned_by_version_and_sha_256_and_checked() {
    let environment = environment(&build("windows-runner"));
    let version: Vec<&str> = environment["RUNNER_VERSION"].split('.').collect();
    assert!(version.len() == 3 && version.iter().all(|part| part.parse::<u32>().is_ok()));
    assert!(is_sha256(&environment["RUNNER_SHA256"]));
    let script = read("scripts/install-runner.ps1");
    assert!(
        script.contains(
            "/v$version/actions-runner-win-x64-$version.zip\" -Path $zip -Sha256 $env:RUNNER_SHA256"
        )
    );
    assert!(script.contains("'C:\\actions-runner'") && script.contains("'C:\\hostedtoolcache\\windows'"));
}

fn is_sha256(hash: &str) -> bool {
    hash.len() == 64 && hash.chars().all(|c| c.is_ascii_hexdigit())
}

/// A download is checked against a hash or a signature, except the tool cache's,
/// for which nothing is published.
#[test]
fn every_downloaded_program_is_checked() {
    for (name, script) in all_scripts() {
        let unchecked = script.matches("-OutFile").count();
        let allowed = usize::from(name.ends_with("/common.ps1") || name.ends_with("/install-tool-cache.ps1"));
        assert_eq!(unchecked, allowed, "{name}");
        for call in script.lines().filter(|l| l.trim_start().starts_with("Save-Download ")) {
            assert!(call.contains(" -Sha256 ") || call.contains(" -Signer "), "{name}: {call}");
        }
    }
}

fn tools(list: &str) -> serde_json::Value {
    serde_json::from_str(&read(&format!("tools/{list}.json"))).unwrap()
}

/// First word of each package: what Chocolatey calls it.
fn packages(list: &str) -> BTreeSet<String> {
    let tools = tools(list);
    let packages = tools["packages"].as_array().unwrap();
    let names: BTreeSet<String> = packages.iter().map(|p| p[0].as_str().unwrap().to_string()).collect();
    assert_eq!(names.len(), packages.len(), "{list}: a package stands twice");
    for further in packages.iter().flat_map(|p| p.as_array().unwrap().iter().skip(1)) {
        assert!(further.as_str().unwrap().starts_with("--"), "{list}: {further}");
    }
    names
}

#[test]
fn the_images_hold_what_they_promise() {
    let has = |list: &str, wanted: &[&str]| {
        let packages = packages(list);
        for name in wanted {
            assert!(packages.contains(*name), "{list}: {name}");
        }
    };
    let minimal = ["git", "nodejs-lts", "python313", "dotnet-10.0-sdk", "7zip", "powershell-core"];
    has("minimal", &minimal);
    assert_eq!(packages("minimal").len(), minimal.len(), "minimal is minimal");
    // Its Python is the tool cache's, on PATH.
    has("enhanced", &minimal.map(|name| if name == "python313" { "git" } else { name }));
    assert_eq!(tools("enhanced")["toolCache"][0]["onPath"], "3.13");
    has(
        "enhanced",
        &[
            "dotnet-8.0-sdk",
            "azure-cli",
            "awscli",
            "gh",
            "docker-engine",
            "cmake",
            "ninja",
            "postgresql17",
            "mysql",
        ],
    );
    assert!(
        packages("enhanced").iter().filter(|p| p.starts_with("temurin")).count() > 1,
        "several versions of Java"
    );

    let enhanced = tools("enhanced");
    let mut several: Vec<&str> = Vec::new();
    for tool in enhanced["toolCache"].as_array().unwrap() {
        let versions = tool["versions"].as_array().unwrap();
        assert!(versions.len() > 1, "{tool}");
        assert!(tool["onPath"] == "" || versions.contains(&tool["onPath"]), "{tool}");
        several.push(tool["tool"].as_str().unwrap());
    }
    assert_eq!(several, ["python", "node", "go"]);
    let scripts = build("windows-runner-enhanced").scripts().join(" ");
    for script in
        ["install-build-tools", "install-tool-cache", "install-rust", "install-gcloud", "configure-databases"]
    {
        assert!(scripts.contains(script), "{script}");
    }
    let build_tools = read("scripts/install-build-tools.ps1");
    for workload in ["VCTools", "ManagedDesktopBuildTools"] {
        assert!(build_tools.contains(&format!("'Microsoft.VisualStudio.Workload.{workload}'")));
    }
}

#[test]
fn every_tool_has_a_check_that_fails_the_build() {
    for (list, programs) in [
        ("minimal", &["git", "node", "python", "dotnet", "pwsh"][..]),
        (
            "enhanced",
            &[
                "git", "node", "python", "dotnet", "pwsh", "go", "java", "cmake", "ninja", "gh", "az", "aws",
                "gcloud", "docker", "rustc", "mysqld",
            ],
        ),
    ] {
        let tools = tools(list);
        let checked: Vec<&str> = tools["checks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c.as_str().unwrap().split(' ').next().unwrap())
            .collect();
        for program in programs {
            assert!(checked.contains(program), "{list}: {program}");
        }
    }
    assert!(read("scripts/check-image.ps1").contains("foreach ($check in $tools.checks)"));
}

#[test]
fn rebuilding_knows_the_templates_and_their_variables() {
    let script = read("rebuild.ps1");
    let templates = templates();
    let variables: BTreeSet<&str> = blocks(&templates, "variable").map(|(_, b)| label(b, 0)).collect();
    let given: Vec<&str> =
        script.split("'-var', \"").skip(1).map(|rest| rest.split('=').next().unwrap()).collect();
    assert_eq!(given, ["runner_version", "runner_sha256", "install_updates"]);
    assert!(given.iter().all(|name| variables.contains(name)));

    let set = script.split("[ValidateSet(").nth(1).unwrap().split(')').next().unwrap();
    let offered: BTreeSet<String> = set.split(", ").map(|name| name.trim_matches('\'').to_string()).collect();
    assert_eq!(offered, resolved().builds.iter().map(|b| b.name().to_string()).collect());
    // With skip_export the disk is here, named after vm_name.
    assert!(
        script.contains(r#"Join-Path $PSScriptRoot "output-$Template\Virtual Hard Disks\$Template.vhdx""#)
    );
}

const NAMESPACE: &str = "urn:schemas-microsoft-com:unattend";
const WCM: &str = "http://schemas.microsoft.com/WMIConfig/2002/State";

fn answer_file(resolved: &Resolved) -> String {
    let content = resolved.source["cd_content"].as_object().unwrap();
    assert_eq!(
        content.keys().collect::<Vec<_>>(),
        ["autounattend.xml"],
        "the name that Windows Setup looks for"
    );
    content["autounattend.xml"].as_str().unwrap().to_string()
}

fn children<'a, 'i>(node: Node<'a, 'i>, name: &'a str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |n| n.has_tag_name((NAMESPACE, name)))
}

/// Text at a path of element names below a node; panics where there is none.
fn text(node: Node, path: &str) -> String {
    maybe_text(node, path).unwrap_or_else(|| panic!("{path} is missing in {:?}", node.tag_name()))
}

fn maybe_text(node: Node, path: &str) -> Option<String> {
    let mut at = node;
    for name in path.split('/') {
        at = at.children().find(|n| n.has_tag_name((NAMESPACE, name)))?;
    }
    at.text().map(str::to_string)
}

fn component<'a, 'i>(answers: &'a Document<'i>, pass: &str, name: &str) -> Node<'a, 'i> {
    answers
        .descendants()
        .find(|n| {
            n.attribute("name") == Some(name)
                && n.parent_element().and_then(|p| p.attribute("pass")) == Some(pass)
        })
        .unwrap_or_else(|| panic!("{pass}: {name}"))
}

/// Components and the passes that each may stand in:
/// <https://learn.microsoft.com/en-us/windows-hardware/customize/desktop/unattend/components-b-unattend>
#[test]
fn the_answer_file_names_passes_and_components_that_windows_knows() {
    let answers = answer_file(&resolved());
    let answers = Document::parse(&answers).unwrap();
    assert!(answers.root_element().has_tag_name((NAMESPACE, "unattend")));
    let mut found = Vec::new();
    for settings in answers.root_element().children().filter(Node::is_element) {
        assert!(settings.has_tag_name((NAMESPACE, "settings")));
        for component in settings.children().filter(Node::is_element) {
            assert!(component.has_tag_name((NAMESPACE, "component")));
            for (attribute, value) in [
                ("processorArchitecture", "amd64"),
                ("publicKeyToken", "31bf3856ad364e35"),
                ("language", "neutral"),
                ("versionScope", "nonSxS"),
            ] {
                assert_eq!(component.attribute(attribute), Some(value));
            }
            found.push((settings.attribute("pass").unwrap(), component.attribute("name").unwrap()));
        }
    }
    assert_eq!(
        found,
        [
            ("windowsPE", "Microsoft-Windows-International-Core-WinPE"),
            ("windowsPE", "Microsoft-Windows-Setup"),
            ("specialize", "Microsoft-Windows-Shell-Setup"),
            ("specialize", "Microsoft-Windows-Deployment"),
            ("oobeSystem", "Microsoft-Windows-International-Core"),
            ("oobeSystem", "Microsoft-Windows-Shell-Setup"),
        ]
    );
}

#[test]
fn every_list_of_the_answer_file_is_added_in_order() {
    let answers = answer_file(&resolved());
    let answers = Document::parse(&answers).unwrap();
    let mut lists = 0;
    for list in answers.descendants() {
        let orders: Vec<u32> = list
            .children()
            .filter_map(|item| maybe_text(item, "Order"))
            .map(|o| o.parse().unwrap())
            .collect();
        if !orders.is_empty() {
            assert_eq!(orders, (1..=orders.len() as u32).collect::<Vec<_>>(), "{:?}", list.tag_name());
            assert!(
                list.children()
                    .filter(Node::is_element)
                    .all(|item| item.attribute((WCM, "action")) == Some("add"))
            );
            lists += 1;
        }
    }
    assert_eq!(lists, 5);
}

/// UEFI boots from an EFI partition (FAT32, 100 MB at least, 260 MB on disks with
/// 4 KB sectors), Windows reserves 16 MB beside it, and the rest is Windows.
/// <https://learn.microsoft.com/en-us/windows-hardware/manufacture/desktop/configure-uefigpt-based-hard-drive-partitions>
#[test]
fn the_answer_file_partitions_a_uefi_disk() {
    let resolved = resolved();
    let answers = answer_file(&resolved);
    let answers = Document::parse(&answers).unwrap();
    let setup = component(&answers, "windowsPE", "Microsoft-Windows-Setup");
    let disks: Vec<Node> = children(children(setup, "DiskConfiguration").next().unwrap(), "Disk").collect();
    assert_eq!(disks.len(), 1);
    assert_eq!((text(disks[0], "DiskID").as_str(), text(disks[0], "WillWipeDisk").as_str()), ("0", "true"));

    let created: Vec<Node> =
        children(children(disks[0], "CreatePartitions").next().unwrap(), "CreatePartition").collect();
    let kinds: Vec<String> = created.iter().map(|p| text(*p, "Type")).collect();
    assert_eq!(kinds, ["EFI", "MSR", "Primary"]);
    let megabytes = |p: &Node| maybe_text(*p, "Size").map(|s| s.parse::<u32>().unwrap());
    assert!(megabytes(&created[0]).is_some_and(|size| (260..=1024).contains(&size)));
    assert_eq!(megabytes(&created[1]), Some(16));
    let extended: Vec<usize> =
        (0..created.len()).filter(|i| maybe_text(created[*i], "Extend").as_deref() == Some("true")).collect();
    assert_eq!(extended, [created.len() - 1], "exactly one takes the rest, and it is the last");
    assert_eq!(megabytes(&created[2]), None, "a size and Extend exclude each other");

    let modified: Vec<Node> =
        children(children(disks[0], "ModifyPartitions").next().unwrap(), "ModifyPartition").collect();
    let formats: Vec<(String, Option<String>)> =
        modified.iter().map(|p| (text(*p, "PartitionID"), maybe_text(*p, "Format"))).collect();
    let format = |id: &str, format: Option<&str>| (id.to_string(), format.map(String::from));
    assert_eq!(formats, [format("1", Some("FAT32")), format("2", None), format("3", Some("NTFS"))]);

    let target = children(setup, "ImageInstall").next().unwrap();
    assert_eq!(text(target, "OSImage/InstallTo/DiskID"), "0");
    let id = text(target, "OSImage/InstallTo/PartitionID");
    let windows = modified.iter().find(|p| text(**p, "PartitionID") == id).unwrap();
    assert_eq!(text(*windows, "Letter"), "C");
    assert_eq!(kinds[id.parse::<usize>().unwrap() - 1], "Primary");
}

#[test]
fn the_answer_file_picks_the_edition_by_name_and_holds_no_product_key() {
    for windows in WINDOWS {
        let resolved = resolve(&[("windows", windows)], "").unwrap();
        let answers = answer_file(&resolved);
        let answers = Document::parse(&answers).unwrap();
        let setup = component(&answers, "windowsPE", "Microsoft-Windows-Setup");
        assert_eq!(text(setup, "ImageInstall/OSImage/InstallFrom/MetaData/Key"), "/IMAGE/NAME");
        let image = text(setup, "ImageInstall/OSImage/InstallFrom/MetaData/Value");
        assert_eq!(image, resolved.locals["image_name"].as_str().unwrap());
        assert_eq!(text(setup, "UserData/AcceptEula"), "true");
        assert!(answers.descendants().all(|n| !n.tag_name().name().contains("ProductKey")));
    }
}

#[test]
fn the_answer_file_takes_locale_and_time_zone_from_the_variables() {
    let resolved = resolve(&[("locale", "sv-SE"), ("time_zone", "Romance Standard Time")], "").unwrap();
    let answers = answer_file(&resolved);
    let answers = Document::parse(&answers).unwrap();
    for (pass, name) in [
        ("windowsPE", "Microsoft-Windows-International-Core-WinPE"),
        ("oobeSystem", "Microsoft-Windows-International-Core"),
    ] {
        for setting in ["InputLocale", "SystemLocale", "UILanguage", "UserLocale"] {
            assert_eq!(text(component(&answers, pass, name), setting), "sv-SE");
        }
    }
    let shell = component(&answers, "specialize", "Microsoft-Windows-Shell-Setup");
    assert_eq!(text(shell, "TimeZone"), "Romance Standard Time");
}

#[test]
fn the_build_logs_on_once_and_opens_winrm_from_the_cd() {
    let resolved = resolved();
    let user = resolved.locals["build_user"].as_str().unwrap().to_string();
    assert_eq!(resolved.source["winrm_username"], Value::from(user.as_str()));
    assert_eq!(
        resolved.source["winrm_use_ssl"],
        Value::from(true),
        "the password must not cross the wire in clear"
    );
    let answers = answer_file(&resolved);
    let answers = Document::parse(&answers).unwrap();
    let shell = component(&answers, "oobeSystem", "Microsoft-Windows-Shell-Setup");
    assert_eq!(text(shell, "UserAccounts/LocalAccounts/LocalAccount/Name"), user);
    assert_eq!(text(shell, "AutoLogon/Username"), user);
    assert_eq!(text(shell, "AutoLogon/LogonCount"), "1");
    let command = text(shell, "FirstLogonCommands/SynchronousCommand/CommandLine");
    let cd: Vec<String> = strings(&resolved.source, &["cd_files"]).iter().map(|f| file_name(f)).collect();
    assert_eq!(cd, ["enable-winrm.ps1"]);
    assert!(command.ends_with("-File %d:\\enable-winrm.ps1"), "{command}");
}
