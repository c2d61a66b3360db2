//! Checks PowerShell scripts without PowerShell: that they parse, and that each
//! command in them is one that exists and is called as its documentation says.
//!
//! What is known of the cmdlets stands in `tests/data`, see the README there.
//! The rules are stricter than PowerShell where that costs nothing: no aliases,
//! no abbreviated parameters, no positional arguments to the cmdlets of the
//! Windows modules (whose positions are not in the data).

use std::collections::{BTreeMap, HashMap};
use tree_sitter::{Node, Parser, Tree};

/// Parameters that every cmdlet has, in 5.1 and 7.
const COMMON: [&str; 11] = [
    "Verbose",
    "Debug",
    "ErrorAction",
    "WarningAction",
    "InformationAction",
    "ErrorVariable",
    "WarningVariable",
    "InformationVariable",
    "OutVariable",
    "OutBuffer",
    "PipelineVariable",
];
const COMMON_SWITCHES: [&str; 2] = ["Verbose", "Debug"];
const ACTIONS: [&str; 6] = ["SilentlyContinue", "Stop", "Continue", "Inquire", "Ignore", "Suspend"];

/// Programs that the scripts may call. Anything else is a misspelt cmdlet or an alias.
const PROGRAMS: [&str; 28] = [
    "bcdedit.exe",
    "bcdedit",
    "cargo",
    "cargo.exe",
    "cmd.exe",
    "dism.exe",
    "docker",
    "git",
    "git.exe",
    "icacls",
    "icacls.exe",
    "msiexec.exe",
    "net.exe",
    "oscdimg",
    "oscdimg.exe",
    "packer",
    "packer.exe",
    "powercfg.exe",
    "powershell.exe",
    "pwsh",
    "reg.exe",
    "rustup",
    "rustup.exe",
    "sc.exe",
    "schtasks.exe",
    "shutdown.exe",
    "w32tm.exe",
    "winget",
];

/// The words of Pester, in files that are Pester's.
const PESTER: [&str; 9] = [
    "Describe",
    "Context",
    "It",
    "BeforeDiscovery",
    "BeforeAll",
    "BeforeEach",
    "AfterAll",
    "AfterEach",
    "Should",
];

/// Variables that PowerShell sets itself. To assign one has surprising effects.
const AUTOMATIC: [&str; 20] = [
    "args",
    "error",
    "event",
    "executioncontext",
    "false",
    "foreach",
    "home",
    "host",
    "input",
    "matches",
    "myinvocation",
    "null",
    "pid",
    "profile",
    "psitem",
    "psscriptroot",
    "pwd",
    "sender",
    "switch",
    "true",
];

/// Variables that a script may read without having assigned them, in 5.1 and 7.
const GIVEN: [&str; 33] = [
    "$",
    "?",
    "^",
    "_",
    "args",
    "confirmpreference",
    "debugpreference",
    "error",
    "erroractionpreference",
    "executioncontext",
    "false",
    "home",
    "host",
    "informationpreference",
    "lastexitcode",
    "matches",
    "myinvocation",
    "null",
    "ofs",
    "outputencoding",
    "pid",
    "progresspreference",
    "psboundparameters",
    "pscmdlet",
    "pscommandpath",
    "pshome",
    "psitem",
    "psscriptroot",
    "psversiontable",
    "pwd",
    "this",
    "true",
    "warningpreference",
];

#[derive(Clone, Debug, PartialEq)]
struct Param {
    name: String,
    switch: bool,
    mandatory: bool,
    position: Option<usize>,
    /// The type's name, as documented.
    kind: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Syntax {
    sets: Vec<Vec<Param>>,
    /// Lower-case alias to parameter.
    aliases: HashMap<String, String>,
    /// Lower-case parameter to its accepted values.
    values: HashMap<String, Vec<String>>,
}

struct Cmdlet {
    /// The same editions of Windows Server share a syntax: "2019+2022".
    editions: Vec<(String, Syntax)>,
    positions_known: bool,
}

/// The cmdlets that exist, and how they are called.
pub struct Checker {
    cmdlets: HashMap<String, (String, Cmdlet)>,
}

/// One argument of a command: a named parameter and its value, or a value alone.
#[derive(Debug)]
struct Argument {
    param: Option<String>,
    /// The value's literals: `Some` for each that can be told from the text.
    value: Option<Vec<Option<String>>>,
}

#[derive(Debug, Default)]
struct Call {
    arguments: Vec<Argument>,
    /// A splatted table whose keys cannot be told.
    opaque: bool,
}

impl Checker {
    /// Reads the two tables of `tests/data`.
    pub fn new(windows_modules_json: &str, core_syntax: &str) -> Checker {
        let mut cmdlets = HashMap::new();
        let json: serde_json::Value = serde_json::from_str(windows_modules_json).expect("cmdlets.json");
        for (name, entry) in json["cmdlets"].as_object().expect("cmdlets") {
            let mut editions = Vec::new();
            for (edition, syntax) in entry["versions"].as_object().expect("versions") {
                editions.push((edition.clone(), syntax_from_json(name, syntax)));
            }
            cmdlets.insert(name.to_lowercase(), (name.clone(), Cmdlet { editions, positions_known: false }));
        }
        for (name, syntax) in syntax_from_text(core_syntax) {
            let editions = vec![("2019+2022+2025".to_owned(), syntax)];
            cmdlets.insert(name.to_lowercase(), (name, Cmdlet { editions, positions_known: true }));
        }
        Checker { cmdlets }
    }

    /// The functions that a file defines, as `neighbours` for the files that dot-source it.
    pub fn functions(&self, source: &str) -> Vec<String> {
        let tree = parse(source);
        functions(tree.root_node(), source).into_keys().collect()
    }

    /// Everything wrong with one script, each as "line N: what".
    /// `neighbours`: functions that other files give it, whose parameters are not checked.
    pub fn check(&self, source: &str, neighbours: &[String], pester: bool) -> Vec<String> {
        let mut faults = Vec::new();
        for (n, line) in source.lines().enumerate() {
            if let Some(c) = line.chars().find(|c| !c.is_ascii()) {
                faults.push((n + 1, format!("{c:?} is not ASCII, which Windows PowerShell reads as ANSI")));
            }
        }
        let tree = parse(source);
        let file = File {
            checker: self,
            source,
            functions: functions(tree.root_node(), source),
            neighbours: neighbours.iter().map(|f| f.to_lowercase()).collect(),
            pester,
        };
        if tree.root_node().has_error() {
            syntax_faults(tree.root_node(), source, &mut faults);
        }
        let opening = opening_statements(tree.root_node(), source);
        if opening != ["Set-StrictMode -Version Latest", "$ErrorActionPreference = 'Stop'"] {
            faults.push((
                1,
                "must begin with `Set-StrictMode -Version Latest` and `$ErrorActionPreference = 'Stop'`"
                    .into(),
            ));
        }
        // Under strict mode, reading what was never assigned is an error at run time.
        let mut assigned: Vec<String> = GIVEN.iter().map(|name| name.to_string()).collect();
        walk(tree.root_node(), &mut |node| {
            if is_variable(node) && is_assigned(node) {
                assigned.push(variable_name(text(node, source)));
            }
        });
        walk(tree.root_node(), &mut |node| {
            let name = variable_name(text(node, source));
            if is_variable(node) && !name.starts_with("env:") && !assigned.contains(&name) {
                faults.push((line(node), format!("${name} is never assigned")));
            }
        });
        walk(tree.root_node(), &mut |node| match node.kind() {
            "command" => file.command(node, &mut |what| faults.push((line(node), what))),
            "pipeline_chain_tail" => {
                faults.push((line(node), "&& and || do not exist in Windows PowerShell".into()))
            }
            "variable" => {
                let name = variable_name(text(node, source));
                if name == "input" {
                    faults.push((line(node), "$input makes PowerShell itself read standard input".into()));
                } else if AUTOMATIC.contains(&name.as_str()) && is_assigned(node) {
                    faults.push((
                        line(node),
                        format!("${name} is PowerShell's own variable and is not to be assigned"),
                    ));
                }
            }
            _ => {}
        });
        faults.sort();
        faults.dedup();
        faults.into_iter().map(|(line, what)| format!("line {line}: {what}")).collect()
    }
}

struct File<'a> {
    checker: &'a Checker,
    source: &'a str,
    functions: BTreeMap<String, Syntax>,
    neighbours: Vec<String>,
    pester: bool,
}

impl File<'_> {
    fn command(&self, node: Node, fault: &mut dyn FnMut(String)) {
        let Some(name) = self.command_name(node) else { return };
        let lower = name.to_lowercase();
        if PROGRAMS.contains(&lower.as_str()) || name.contains(['\\', '/']) {
            return;
        }
        if !self.functions.contains_key(&lower) && self.neighbours.contains(&lower) {
            return;
        }
        if self.pester && PESTER.iter().any(|word| word.eq_ignore_ascii_case(&name)) {
            return;
        }
        let call = self.call(node, &lower);
        let piped = is_piped_into(node);
        if let Some(syntax) = self.functions.get(&lower) {
            check_call(&name, "", syntax, &call, piped, true, fault);
        } else if let Some((real, cmdlet)) = self.checker.cmdlets.get(&lower) {
            for edition in ["2019", "2022", "2025"] {
                match cmdlet.editions.iter().find(|(editions, _)| editions.split('+').any(|e| e == edition)) {
                    None => fault(format!("{real} is not documented for Server {edition}")),
                    Some((_, syntax)) => {
                        let known = cmdlet.positions_known;
                        check_call(
                            real,
                            &format!(" on Server {edition}"),
                            syntax,
                            &call,
                            piped,
                            known,
                            fault,
                        );
                    }
                }
            }
        } else if name.contains('-') {
            fault(format!("there is no cmdlet {name}"));
        } else {
            fault(format!("{name} is an alias, or a program that the checker does not know"));
        }
    }

    /// The command's name, unless it is computed (`& $program`).
    fn command_name(&self, node: Node) -> Option<String> {
        for child in children(node) {
            match child.kind() {
                "command_name" => return Some(text(child, self.source).to_owned()),
                "command_name_expr" => {
                    let inner = children(child).into_iter().find(|c| c.kind() == "command_name")?;
                    return Some(text(inner, self.source).to_owned());
                }
                _ => {}
            }
        }
        None
    }

    fn call(&self, node: Node, lower_name: &str) -> Call {
        let mut call = Call::default();
        let Some(elements) = children(node).into_iter().find(|c| c.kind() == "command_elements") else {
            return call;
        };
        // "-Name" or "-Name:" seen, its value not yet; and whether a colon binds them.
        let mut open: Option<(String, bool)> = None;
        let mut comma = false;
        for child in children(elements) {
            let this = text(child, self.source);
            match child.kind() {
                "command_argument_sep" => {
                    if this.contains(':')
                        && let Some((_, bound)) = &mut open
                    {
                        *bound = true;
                    }
                }
                "redirection" => {}
                "," => comma = true,
                "command_parameter" => {
                    if let Some((param, _)) = open.take() {
                        call.arguments.push(Argument { param: Some(param), value: None });
                    }
                    let bound = this.ends_with(':');
                    open = Some((this.trim_start_matches('-').trim_end_matches(':').to_owned(), bound));
                }
                _ if this.starts_with('@') && this[1..].chars().all(|c| c.is_alphanumeric() || c == '_') => {
                    match self.splatted(&this[1..], node.start_byte()) {
                        Some(arguments) => call.arguments.extend(arguments),
                        None => call.opaque = true,
                    }
                }
                _ if child.is_named() => {
                    let mut values = literals(child, self.source);
                    if comma {
                        if let Some(Argument { value: Some(last), .. }) = call.arguments.last_mut() {
                            last.append(&mut values);
                        }
                        comma = false;
                    } else if let Some((param, bound)) = open.take() {
                        if bound || !self.is_switch(lower_name, &param) {
                            call.arguments.push(Argument { param: Some(param), value: Some(values) });
                        } else {
                            call.arguments.push(Argument { param: Some(param), value: None });
                            call.arguments.push(Argument { param: None, value: Some(values) });
                        }
                    } else {
                        call.arguments.push(Argument { param: None, value: Some(values) });
                    }
                }
                _ => {}
            }
        }
        if let Some((param, _)) = open {
            call.arguments.push(Argument { param: Some(param), value: None });
        }
        call
    }

    fn is_switch(&self, lower_name: &str, param: &str) -> bool {
        if COMMON_SWITCHES.iter().any(|s| s.eq_ignore_ascii_case(param)) {
            return true;
        }
        let of = |syntax: &Syntax| {
            let name = full_name(syntax, param);
            syntax.sets.iter().flatten().any(|p| p.switch && p.name.eq_ignore_ascii_case(&name))
        };
        if let Some(syntax) = self.functions.get(lower_name) {
            return of(syntax);
        }
        match self.checker.cmdlets.get(lower_name) {
            Some((_, cmdlet)) => cmdlet.editions.iter().any(|(_, syntax)| of(syntax)),
            None => false,
        }
    }

    /// The keys and values that the last table assigned to the variable before
    /// this place holds, with those added to it by name since.
    fn splatted(&self, variable: &str, before: usize) -> Option<Vec<Argument>> {
        let tree = parse(self.source);
        let mut found: Option<Vec<Argument>> = None;
        walk(tree.root_node(), &mut |node| {
            if node.kind() != "assignment_expression" || node.start_byte() >= before {
                return;
            }
            let sides = children(node);
            let (Some(left), Some(right)) = (sides.first(), sides.last()) else { return };
            let left = text(*left, self.source);
            let dollar = format!("${variable}");
            if left.eq_ignore_ascii_case(&dollar) {
                found = hash_literal(*right, self.source);
            } else if let Some(arguments) = &mut found {
                let key = left
                    .strip_prefix(&format!("{dollar}['"))
                    .and_then(|rest| rest.strip_suffix("']"))
                    .or_else(|| left.strip_prefix(&format!("{dollar}.")));
                if let Some(key) = key {
                    arguments.push(Argument {
                        param: Some(key.to_owned()),
                        value: Some(literals(*right, self.source)),
                    });
                }
            }
        });
        found
    }
}

fn check_call(
    name: &str,
    place: &str,
    syntax: &Syntax,
    call: &Call,
    piped: bool,
    positions_known: bool,
    fault: &mut dyn FnMut(String),
) {
    let mut given: Vec<String> = Vec::new();
    let mut positional = 0;
    for argument in &call.arguments {
        let Some(written) = &argument.param else {
            positional += 1;
            continue;
        };
        if COMMON.iter().any(|c| c.eq_ignore_ascii_case(written)) {
            if written.to_lowercase().ends_with("action") {
                check_value(name, place, written, &ACTIONS.map(str::to_owned), argument, fault);
            }
            continue;
        }
        let full = full_name(syntax, written);
        let Some(param) = syntax.sets.iter().flatten().find(|p| p.name.eq_ignore_ascii_case(&full)) else {
            fault(format!("{name} has no parameter -{written}{place}"));
            continue;
        };
        if given.contains(&param.name.to_lowercase()) {
            fault(format!("-{} is given to {name} twice", param.name));
        }
        given.push(param.name.to_lowercase());
        if !param.switch && argument.value.is_none() {
            fault(format!("-{} of {name} needs a value", param.name));
        }
        if let Some(values) = syntax.values.get(&param.name.to_lowercase()) {
            check_value(name, place, &param.name, values, argument, fault);
        }
        check_type(name, param, argument, fault);
    }
    if call.opaque {
        return;
    }
    if positional > 0 && !positions_known {
        fault(format!("{name} has an argument without a parameter's name; write the name"));
        return;
    }
    let fitting: Vec<&Vec<Param>> = syntax
        .sets
        .iter()
        .filter(|set| given.iter().all(|g| set.iter().any(|p| p.name.to_lowercase() == *g)))
        .collect();
    if fitting.is_empty() {
        let each_exists =
            given.iter().all(|g| syntax.sets.iter().flatten().any(|p| p.name.to_lowercase() == *g));
        if each_exists && !given.is_empty() {
            fault(format!("{name} has no parameter set with all of -{}{place}", given.join(" -")));
        }
        return;
    }
    let mut least: Option<Vec<String>> = None;
    let mut too_many = true;
    for set in fitting {
        let mut places: Vec<&Param> =
            set.iter().filter(|p| p.position.is_some() && !given.contains(&p.name.to_lowercase())).collect();
        places.sort_by_key(|p| p.position);
        if positional > places.len() {
            continue;
        }
        too_many = false;
        let filled: Vec<String> = places.iter().take(positional).map(|p| p.name.to_lowercase()).collect();
        let missing: Vec<String> = set
            .iter()
            .filter(|p| p.mandatory)
            .filter(|p| !given.contains(&p.name.to_lowercase()) && !filled.contains(&p.name.to_lowercase()))
            .map(|p| p.name.clone())
            .collect();
        if least.as_ref().is_none_or(|l| missing.len() < l.len()) {
            least = Some(missing);
        }
    }
    if too_many {
        fault(format!("{name} does not take {positional} arguments without a parameter's name"));
        return;
    }
    let missing = least.unwrap_or_default();
    // One of them may come through the pipeline.
    if missing.len() > usize::from(piped) {
        fault(format!("{name} lacks its mandatory parameter -{}{place}", missing.join(", -")));
    }
}

fn check_value(
    name: &str,
    place: &str,
    param: &str,
    accepted: &[String],
    argument: &Argument,
    fault: &mut dyn FnMut(String),
) {
    for value in argument.value.iter().flatten().flatten() {
        if !value.starts_with('$') && !accepted.iter().any(|a| a.eq_ignore_ascii_case(value)) {
            fault(format!(
                "{name} does not accept {value} for -{param}{place}, only {}",
                accepted.join(", ")
            ));
        }
    }
}

fn check_type(name: &str, param: &Param, argument: &Argument, fault: &mut dyn FnMut(String)) {
    let kind = param.kind.trim_end_matches("[]").to_lowercase();
    let number = matches!(
        kind.as_str(),
        "int"
            | "int16"
            | "int32"
            | "int64"
            | "uint"
            | "uint16"
            | "uint32"
            | "uint64"
            | "long"
            | "byte"
            | "double"
    );
    for value in argument.value.iter().flatten().flatten() {
        let wrong = if number {
            !value.starts_with('$') && value.parse::<f64>().is_err()
        } else if kind == "boolean" || kind == "bool" {
            !["$true", "$false", "1", "0"].iter().any(|v| v.eq_ignore_ascii_case(value))
        } else if param.switch {
            !["$true", "$false"].iter().any(|v| v.eq_ignore_ascii_case(value))
        } else {
            false
        };
        if wrong {
            fault(format!("-{} of {name} takes a {}, not {value}", param.name, param.kind));
        }
    }
}

fn full_name(syntax: &Syntax, written: &str) -> String {
    syntax.aliases.get(&written.to_lowercase()).cloned().unwrap_or_else(|| written.to_owned())
}

fn syntax_from_json(name: &str, json: &serde_json::Value) -> Syntax {
    let noun = name.split_once('-').map_or("", |(_, noun)| noun);
    let mut syntax = Syntax::default();
    for set in json["sets"].as_array().expect("sets") {
        let mut params = Vec::new();
        for (param, kind) in set.as_object().expect("set") {
            let kind = kind.as_str().expect("type");
            // An artefact of the data, see tests/data/README.md.
            if param == noun && kind == "switch required" {
                continue;
            }
            params.push(Param {
                name: param.clone(),
                switch: kind.starts_with("switch"),
                mandatory: kind.ends_with(" required"),
                position: None,
                kind: kind.trim_end_matches(" required").to_owned(),
            });
        }
        syntax.sets.push(params);
    }
    for (param, aliases) in json["aliases"].as_object().into_iter().flatten() {
        for alias in aliases.as_array().into_iter().flatten() {
            syntax.aliases.insert(alias.as_str().expect("alias").to_lowercase(), param.clone());
        }
    }
    for (param, values) in json["values"].as_object().into_iter().flatten() {
        let values = values.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned));
        syntax.values.insert(param.to_lowercase(), values.collect());
    }
    syntax
}

/// Reads `Copy-Item [-Path] <string[]> [[-Destination] <string>] [-Force] ...`, a set a line.
fn syntax_from_text(lines: &str) -> BTreeMap<String, Syntax> {
    let mut all: BTreeMap<String, Syntax> = BTreeMap::new();
    for line in lines.lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#')) {
        let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
        let syntax = all.entry(name.to_owned()).or_default();
        let mut params: Vec<Param> = Vec::new();
        let mut positions = 0;
        let mut rest = rest.trim();
        while !rest.is_empty() {
            // A token ends where its brackets are closed and a space follows.
            let mut depth = 0;
            let end = rest
                .char_indices()
                .find(|(_, c)| {
                    match c {
                        '[' | '{' | '<' => depth += 1,
                        ']' | '}' | '>' => depth -= 1,
                        _ => {}
                    }
                    depth == 0 && *c == ' '
                })
                .map_or(rest.len(), |(at, _)| at);
            let (token, after) = rest.split_at(end);
            rest = after.trim();
            if token.starts_with(['<', '{']) {
                // The value of a mandatory parameter before it: `-Name <type>` or `[-Name] <type>`.
                let last = params.last_mut().expect("a value follows a parameter");
                last.switch = false;
                last.mandatory = true;
                if last.position == Some(usize::MAX) {
                    last.position = Some(positions);
                    positions += 1;
                }
                let (kind, values) = kind_and_values(token);
                last.kind = kind;
                if !values.is_empty() {
                    syntax.values.insert(last.name.to_lowercase(), values);
                }
                continue;
            }
            let optional = token.starts_with('[');
            let inner = if optional {
                token.strip_prefix('[').and_then(|t| t.strip_suffix(']')).expect("]")
            } else {
                token
            };
            let (param, value) = inner.split_once(' ').map_or((inner, None), |(p, v)| (p, Some(v)));
            let bracketed = param.starts_with('[');
            let param_name = param.trim_matches(['[', ']', '-']).to_owned();
            let mut entry = Param {
                name: param_name,
                switch: value.is_none(),
                mandatory: !optional,
                // `[-Name]` is a switch, or a position if a value follows.
                position: if optional && value.is_none() { Some(usize::MAX) } else { None },
                kind: "switch".into(),
            };
            if let Some(value) = value {
                if bracketed {
                    entry.position = Some(positions);
                    positions += 1;
                }
                let (kind, values) = kind_and_values(value);
                entry.kind = kind;
                if !values.is_empty() {
                    syntax.values.insert(entry.name.to_lowercase(), values);
                }
            }
            params.push(entry);
        }
        for param in &mut params {
            if param.position == Some(usize::MAX) {
                param.position = None;
            }
        }
        syntax.sets.push(params);
    }
    all
}

fn kind_and_values(token: &str) -> (String, Vec<String>) {
    if let Some(values) = token.strip_prefix('{') {
        let values = values.trim_end_matches('}').split('|').map(|v| v.trim().to_owned()).collect();
        return ("enum".into(), values);
    }
    (token.trim_matches(['<', '>']).to_owned(), Vec::new())
}

/// The functions that a script defines, by lower-case name.
fn functions(root: Node, source: &str) -> BTreeMap<String, Syntax> {
    let mut all = BTreeMap::new();
    walk(root, &mut |node| {
        if node.kind() != "function_statement" {
            return;
        }
        let Some(name) = children(node).into_iter().find(|c| c.kind() == "function_name") else { return };
        let mut list = None;
        for child in children(node) {
            match child.kind() {
                "function_parameter_declaration" => list = Some(child),
                "script_block" => {
                    let block = children(child).into_iter().find(|c| c.kind() == "param_block");
                    list = list.or(block);
                }
                _ => {}
            }
        }
        let mut set = Vec::new();
        let mut syntax = Syntax::default();
        for param in list.map(script_parameters).unwrap_or_default() {
            let parts = children(param);
            let Some(variable) = parts.iter().find(|c| c.kind() == "variable") else { continue };
            let attributes: Vec<String> = parts
                .iter()
                .filter(|c| c.kind() == "attribute_list")
                .flat_map(|c| children(*c))
                .map(|c| text(c, source).to_lowercase())
                .collect();
            let switch = attributes.iter().any(|a| a == "[switch]");
            let param_name = text(*variable, source).trim_start_matches('$').to_owned();
            if let Some(accepted) = attributes.iter().find_map(|a| a.strip_prefix("[validateset(")) {
                let accepted = accepted.trim_end_matches([')', ']']).split(',');
                let accepted = accepted.map(|v| v.trim().trim_matches(['\'', '"']).to_owned());
                syntax.values.insert(param_name.to_lowercase(), accepted.collect());
            }
            set.push(Param {
                position: (!switch).then_some(set.len()),
                switch,
                mandatory: attributes.iter().any(|a| a.contains("mandatory") && !a.contains("$false")),
                kind: attributes
                    .iter()
                    .map(|a| a.trim_matches(['[', ']']))
                    .rfind(|a| !a.contains('('))
                    .unwrap_or("object")
                    .to_owned(),
                name: param_name,
            });
        }
        syntax.sets.push(set);
        all.insert(text(name, source).to_lowercase(), syntax);
    });
    all
}

fn script_parameters(list: Node) -> Vec<Node> {
    let mut found = Vec::new();
    for child in children(list) {
        match child.kind() {
            "parameter_list" => found.extend(script_parameters(child)),
            "script_parameter" => found.push(child),
            _ => {}
        }
    }
    found
}

fn syntax_faults(node: Node, source: &str, faults: &mut Vec<(usize, String)>) {
    if node.is_missing() {
        faults.push((line(node), format!("does not parse: {} is missing", node.kind())));
    } else if node.is_error() {
        let what: String = text(node, source).chars().take(60).collect();
        faults.push((line(node), format!("does not parse, at {what:?}")));
    }
    for child in children(node) {
        syntax_faults(child, source, faults);
    }
}

/// The script's first two statements.
fn opening_statements(root: Node, source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for child in children(root) {
        if child.kind() == "statement_list" {
            found.extend(children(child).into_iter().filter(|c| c.is_named() && c.kind() != "comment"));
        }
    }
    found.iter().take(2).map(|n| text(*n, source).trim_end_matches(';').to_owned()).collect()
}

fn is_piped_into(command: Node) -> bool {
    let mut before = command.prev_sibling();
    while let Some(node) = before {
        if node.kind() == "|" {
            return true;
        }
        before = node.prev_sibling();
    }
    false
}

fn is_assigned(variable: Node) -> bool {
    let mut node = variable;
    while let Some(parent) = node.parent() {
        match parent.kind() {
            "left_assignment_expression" => return true,
            "foreach_statement" => return parent.child(2).is_some_and(|c| c.id() == node.id()),
            "script_parameter" => return node.kind() == "variable",
            // `$x.y = 1` and `$x[0] = 1` do not assign `$x`.
            "member_access" | "element_access" | "invokation_expression" => return false,
            _ => node = parent,
        }
    }
    false
}

fn is_variable(node: Node) -> bool {
    matches!(node.kind(), "variable" | "braced_variable") && !node.parent().is_some_and(|p| is_variable(p))
}

/// Without its sign and its scope: `$script:Step` is `step`.
fn variable_name(text: &str) -> String {
    let name = text.trim().strip_prefix(['$', '@']).unwrap_or(text);
    let name = name.strip_prefix('{').and_then(|n| n.strip_suffix('}')).unwrap_or(name).to_lowercase();
    for scope in ["script:", "global:", "local:"] {
        if let Some(rest) = name.strip_prefix(scope) {
            return rest.to_owned();
        }
    }
    name
}

/// The literals of an expression: one, or one for each element of a list.
fn literals(node: Node, source: &str) -> Vec<Option<String>> {
    if node.kind() == "generic_token" {
        return vec![Some(text(node, source).to_owned())];
    }
    let named: Vec<Node> = children(node).into_iter().filter(|c| c.is_named()).collect();
    match node.kind() {
        "string_literal" => {
            let this = text(node, source);
            let plain = this.starts_with('\'') || (this.starts_with('"') && !this.contains(['$', '`']));
            vec![plain.then(|| this.trim_matches(['\'', '"']).to_owned())]
        }
        "integer_literal" | "real_literal" => vec![Some(text(node, source).to_owned())],
        "variable" => {
            let this = text(node, source);
            let constant = ["$true", "$false", "$null"].iter().any(|c| c.eq_ignore_ascii_case(this));
            vec![(constant && !this.eq_ignore_ascii_case("$null")).then(|| this.to_owned())]
        }
        "array_literal_expression" if named.len() > 1 => {
            named.into_iter().flat_map(|c| literals(c, source)).collect()
        }
        kind if named.len() == 1
            && text(named[0], source) == text(node, source)
            && kind != "script_block_expression" =>
        {
            literals(named[0], source)
        }
        _ => vec![None],
    }
}

fn hash_literal(node: Node, source: &str) -> Option<Vec<Argument>> {
    if node.kind() == "hash_literal_expression" {
        let mut arguments = Vec::new();
        for body in children(node).into_iter().filter(|c| c.kind() == "hash_literal_body") {
            for entry in children(body).into_iter().filter(|c| c.kind() == "hash_entry") {
                let parts: Vec<Node> = children(entry).into_iter().filter(|c| c.is_named()).collect();
                let key = parts.iter().find(|c| c.kind() == "key_expression")?;
                let value = parts.iter().find(|c| c.kind() == "pipeline")?;
                arguments.push(Argument {
                    param: Some(text(*key, source).trim_matches(['\'', '"']).to_owned()),
                    value: Some(literals(*value, source)),
                });
            }
        }
        return Some(arguments);
    }
    let named: Vec<Node> = children(node).into_iter().filter(|c| c.is_named()).collect();
    if named.len() == 1 { hash_literal(named[0], source) } else { None }
}

fn parse(source: &str) -> Tree {
    let mut parser = Parser::new();
    parser.set_language(&tree_sitter_powershell::LANGUAGE.into()).expect("the grammar fits the library");
    parser.parse(source, None).expect("a tree")
}

fn children(node: Node) -> Vec<Node> {
    (0..node.child_count()).filter_map(|i| node.child(i)).collect()
}

fn walk<'t>(node: Node<'t>, visit: &mut dyn FnMut(Node<'t>)) {
    visit(node);
    for child in children(node) {
        walk(child, visit);
    }
}

fn text<'s>(node: Node, source: &'s str) -> &'s str {
    source.get(node.byte_range()).unwrap_or("")
}

fn line(node: Node) -> usize {
    node.start_position().row + 1
}
