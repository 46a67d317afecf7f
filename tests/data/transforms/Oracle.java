// Applies chains of Kafka Connect's and Debezium's own transforms to records, for tests/data/transforms/record.py.
// Reads one JSON document {"records": {name: [record…]}, "cases": [{"records": name, "properties": {…}}…]};
// writes for each case a line: a list with the record, null where it was filtered out, or {"error": text}.
import com.fasterxml.jackson.databind.*;
import com.fasterxml.jackson.databind.node.*;
import java.util.*;
import org.apache.kafka.connect.data.*;
import org.apache.kafka.connect.header.*;
import org.apache.kafka.connect.json.*;
import org.apache.kafka.connect.source.SourceRecord;
import org.apache.kafka.connect.transforms.Transformation;
import org.apache.kafka.connect.transforms.predicates.Predicate;

public class Oracle {
    static final ObjectMapper MAPPER = new ObjectMapper();

    record Step(Transformation<SourceRecord> transform, Predicate<SourceRecord> predicate, boolean negate) {}

    static Map<String, String> own(JsonNode properties, String prefix) {
        Map<String, String> found = new HashMap<>();
        properties.fields().forEachRemaining(e -> {
            if (e.getKey().startsWith(prefix)) found.put(e.getKey().substring(prefix.length()), e.getValue().asText());
        });
        return found;
    }

    @SuppressWarnings("unchecked")
    static List<Step> chain(JsonNode properties) throws Exception {
        List<Step> steps = new ArrayList<>();
        for (String name : properties.get("transforms").asText().split(",")) {
            Map<String, String> own = own(properties, "transforms." + name + ".");
            Transformation<SourceRecord> transform =
                (Transformation<SourceRecord>) Class.forName(own.remove("type")).getDeclaredConstructor().newInstance();
            String named = own.remove("predicate");
            boolean negate = Boolean.parseBoolean(own.remove("negate"));
            transform.configure(own);
            Predicate<SourceRecord> predicate = null;
            if (named != null) {
                Map<String, String> about = own(properties, "predicates." + named + ".");
                predicate = (Predicate<SourceRecord>) Class.forName(about.remove("type")).getDeclaredConstructor().newInstance();
                predicate.configure(about);
            }
            steps.add(new Step(transform, predicate, negate));
        }
        return steps;
    }

    static JsonConverter converter(boolean key, String defaults) {
        JsonConverter made = new JsonConverter();
        made.configure(Map.of("schemas.enable", "true", "replace.null.with.default", defaults), key);
        return made;
    }

    static final JsonConverter KEYS = converter(true, "true"), VALUES = converter(false, "true");
    // A null of a record is null, whatever its default.
    static final JsonConverter GIVEN = converter(false, "false");

    static SchemaAndValue data(JsonNode node) throws Exception {
        return node == null || node.isNull() ? SchemaAndValue.NULL : GIVEN.toConnectData("", MAPPER.writeValueAsBytes(node));
    }

    static JsonNode json(JsonConverter converter, Schema schema, Object value) throws Exception {
        byte[] made = converter.fromConnectData("", schema, value);
        return made == null ? NullNode.instance : MAPPER.readTree(made);
    }

    static JsonNode printed(SourceRecord record) throws Exception {
        if (record == null) return NullNode.instance;
        ObjectNode node = MAPPER.createObjectNode();
        node.put("topic", record.topic());
        node.set("key", json(KEYS, record.keySchema(), record.key()));
        node.set("value", json(VALUES, record.valueSchema(), record.value()));
        if (record.kafkaPartition() != null) node.put("partition", record.kafkaPartition());
        if (record.timestamp() != null) node.put("timestamp", record.timestamp());
        ArrayNode headers = MAPPER.createArrayNode();
        for (Header header : record.headers()) {
            JsonNode shown = header.value() instanceof Struct
                ? new TextNode(header.value().toString())
                : header.value() == null ? NullNode.instance : json(VALUES, header.schema(), header.value()).get("payload");
            headers.add(MAPPER.createArrayNode().add(header.key()).add(shown));
        }
        if (!headers.isEmpty()) node.set("headers", headers);
        return node;
    }

    static JsonNode applied(List<Step> steps, JsonNode given) {
        try {
            SchemaAndValue key = data(given.get("key")), value = data(given.get("value"));
            SourceRecord record = new SourceRecord(Map.of(), Map.of(), given.get("topic").asText(), null, key.schema(),
                key.value(), value.schema(), value.value(), null, new ConnectHeaders());
            if (given.has("headers")) for (JsonNode header : given.get("headers"))
                record.headers().addString(header.get(0).asText(), header.get(1).asText());
            for (Step step : steps) {
                if (step.predicate() != null && step.predicate().test(record) == step.negate()) continue;
                record = step.transform().apply(record);
                if (record == null) break;
            }
            return printed(record);
        } catch (Throwable error) {
            return MAPPER.createObjectNode().put("error", String.valueOf(error.getMessage()));
        }
    }

    public static void main(String[] args) throws Exception {
        JsonNode input = MAPPER.readTree(System.in);
        for (JsonNode about : input.get("cases")) {
            ArrayNode line = MAPPER.createArrayNode();
            try {
                List<Step> steps = chain(about.get("properties"));
                for (JsonNode record : input.get("records").get(about.get("records").asText())) line.add(applied(steps, record));
            } catch (Throwable error) {
                line.add("refused: " + error);
            }
            System.out.println(MAPPER.writeValueAsString(line));
        }
    }
}
