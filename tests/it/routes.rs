//! The route table: which path and method leads where, and what a proxy may reach.

use crate::support::http::{self, Connection};
use crate::support::mock_pool::{MockPool, MockWorld, Phase, Stop, settings};

/// A pool with one VM whose guest is silent: any callback that got through would move it.
fn one_booting() -> (MockWorld, MockPool) {
    let world = MockWorld::with_silent_guests();
    let pool = world.start(settings(1, 1));
    pool.wait_for(Phase::Booting, 1);
    (world, pool)
}

/// That no request has moved the VM.
fn assert_unmoved(pool: MockPool) {
    assert_eq!(pool.phase(1), Phase::Booting);
    pool.stop(Stop::Destroy);
}

#[test]
fn a_wrong_method_says_which_is_right() {
    let (_world, pool) = one_booting();
    let response = pool.get("/webhook");
    assert_eq!(response.status, 405);
    assert!(response.head.contains("Allow: POST"), "{}", response.head);
    assert_eq!(pool.request("DELETE", "/health", &[], b"").status, 405);
    assert_eq!(pool.request("POST", "/api/runner-config/runner-1", &[], b"").status, 405);
    assert_unmoved(pool);
}

#[test]
fn another_spelling_of_a_path_leads_nowhere() {
    let (_world, pool) = one_booting();
    let guest = pool.guest(1);
    for path in
        ["/api/runner-config/../../health", "/api/runner-config/runner-1/x", "//health", "/health/", "//"]
    {
        let headers = [("Authorization", &*guest.bearer("GET", path))];
        assert_eq!(pool.request("GET", path, &headers, b"").status, 404, "{path}");
    }
    assert_unmoved(pool);
}

#[test]
fn no_spelling_of_a_vms_name_leads_anywhere_else() {
    let (_world, pool) = one_booting();
    let long = "a".repeat(15_000);
    let names = [
        "",
        "runner-9",
        "..",
        ".",
        "%2e%2e",
        "../runner-1",
        "..%2frunner-1",
        "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "..\\..\\windows\\win.ini",
        "..%5c..%5cwindows%5cwin.ini",
        "%72unner-1",
        "runner-1%00",
        "runner-1%20",
        "runner-1.",
        "Runner-1",
        "RUNNER-1",
        "runner-1/",
        "runner-1/..",
        "runner-01",
        "runner-1;x",
        "runner-1%0d%0aX-Injected:%20yes",
        "C:",
        "%",
        "%zz",
        "*",
        "$(whoami)",
        "r%c3%bcnner-1",
        &long,
    ];
    let mut connection = Connection::open(&pool.url);
    let guest = pool.guest(1);
    for name in names {
        for (method, route) in [("GET", "config"), ("POST", "started"), ("POST", "complete")] {
            let path = format!("/api/runner-{route}/{name}");
            let headers = [("Authorization", &*guest.bearer(method, &path))];
            let answer = connection.request(method, &path, &headers, b"");
            assert_eq!(answer.status, 404, "{method} {path}");
            assert!(!answer.head.contains("X-Injected"), "{}", answer.head);
        }
    }
    assert_unmoved(pool);
}

#[test]
fn the_page_and_the_status_answer_to_the_hosts_own_names_only() {
    let (_world, pool) = one_booting();
    let status_of = |host: &str, path: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        http::status(&http::talk(&pool.url, request))
    };
    for path in ["/", "/api/status"] {
        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:8080"] {
            assert_eq!(status_of(host, path), 200, "{path} of {host}");
        }
        // As a page of the internet asks that gave its own name this host's address.
        for host in ["attacker.example", "attacker.example:8080", "localhost.attacker.example", ""] {
            assert_eq!(status_of(host, path), 403, "{path} of {host:?}");
        }
    }
    assert_eq!(status_of("runners.example.com", "/health"), 200);
    assert_unmoved(pool);
}

#[test]
fn the_page_may_load_and_send_nothing_elsewhere() {
    let (_world, pool) = one_booting();
    let page = pool.get("/");
    assert_eq!(page.status, 200);
    assert!(
        page.head.contains("Content-Security-Policy: default-src 'none'; script-src 'sha256-"),
        "{}",
        page.head
    );
    assert!(page.head.contains("connect-src 'self'"), "{}", page.head);
    assert!(!page.body.contains("src=") && !page.body.contains("innerHTML"), "{}", page.body);
    assert_unmoved(pool);
}

#[test]
fn what_came_through_a_proxy_reaches_the_webhook_and_health_alone_however_it_is_spelled() {
    let (_world, pool) = one_booting();
    let guest = pool.guest(1);
    let marks = [
        "X-Forwarded-For",
        "x-forwarded-proto",
        "X-FORWARDED-FOR",
        "x-forwarded-",
        "X-Forwarded-Made-Up",
        "Forwarded",
        "forwarded",
        "Tailscale-User-Login",
        "TAILSCALE-X",
        "CF-Connecting-IP",
        "Cf-Ray",
        "cf-x",
        "Via",
        "X-Real-IP",
    ];
    let private = [
        ("GET", "/api/status"),
        ("GET", "/api/status?x=/webhook"),
        ("GET", "http://h/api/status"),
        ("GET", "/webhook/../api/status"),
        ("GET", "//api/status"),
        ("GET", "/metrics"),
        ("HEAD", "/metrics"),
        ("GET", "/health/../metrics"),
        ("GET", "/"),
        ("GET", "http://h"),
        ("OPTIONS", "*"),
        ("GET", "/api/runner-config/runner-1"),
        ("POST", "/api/runner-started/runner-1"),
        ("POST", "/api/runner-complete/runner-1"),
        ("POST", "/api/runner-complete/runner-1?"),
        ("POST", "/webhook/"),
    ];
    for mark in marks {
        for (method, path) in private {
            let bearer = guest.bearer(method, path);
            // An empty value marks as well as any other.
            for value in ["203.0.113.9", ""] {
                let request = format!(
                    "{method} {path} HTTP/1.1\r\nHost: h\r\nAuthorization: {bearer}\r\n{mark}: {value}\r\nConnection: close\r\n\r\n"
                );
                let answer = http::talk(&pool.url, request);
                assert_eq!(http::status(&answer), 403, "{method} {path} with {mark}");
            }
        }
        let headers = [(mark, "203.0.113.9")];
        assert_eq!(pool.request("GET", "/health", &headers, b"").status, 200);
        assert_eq!(pool.request("POST", "/webhook", &headers, b"{}").status, 401);
    }
    assert_unmoved(pool);
}
