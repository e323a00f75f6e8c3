//! The trail: real files, real processes. No line is lost that was acknowledged, and none changed, removed or added unnoticed.
